"""Settings from keywords, the environment and a file, and the objects they describe.

    Settings(max_concurrency=8)                    keywords win over
    ADMISSION_MAX_CONCURRENCY=8                    the environment, which wins over
    ADMISSION_CONFIG=admission.toml                a file

An option has one name everywhere: that of the keyword of `AdmissionController` or `QoSAdmission`. A file may
group options under headings, which change nothing but how it reads:

    [pool]                          [http]                          [[classes]]
    max_concurrency = 8             trust_headers = false           name = "interactive"

This is the only place where options become objects. Everything else takes ready-made ones.
"""

from admission.config.file import SettingsError
from admission.config.settings import Settings
from admission.config.wiring import middleware_options, serve_metrics

__all__ = ["Settings", "SettingsError", "middleware_options", "serve_metrics"]
