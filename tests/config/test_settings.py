"""Where an option's value comes from, and what settings become."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from admission import AdmissionController, PriorityClass
from admission.asgi.classify import Classification, Tenant
from admission.asgi.middleware import QoSAdmission
from admission.asgi.options import DEFAULTS, Options
from admission.config import Settings, middleware_options
from admission.config.tables import AimdSettings, ClassSettings, GradientSettings, VegasSettings
from admission.observability.logging import LogObserver
from admission.observability.tracing import TracingObserver
from admission.policy.limit import AimdLimit, GradientLimit, VegasLimit

File = Callable[..., str]
DIGEST = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
EXAMPLES = Path(__file__).parents[2] / "examples"


# ---------------------------------------------------------------------- which value wins


def test_a_keyword_wins_over_the_environment_which_wins_over_the_file(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three options in the file, two of them in the environment, one of those as a keyword."""
    monkeypatch.setenv("ADMISSION_CONFIG", file("[pool]\nmax_concurrency = 1\nmax_queue_size = 1\nmax_wait = 1\n"))
    monkeypatch.setenv("ADMISSION_MAX_QUEUE_SIZE", "2")
    monkeypatch.setenv("ADMISSION_MAX_WAIT", "2")
    settings = Settings(max_wait=3)
    assert (settings.max_concurrency, settings.max_queue_size, settings.max_wait) == (1, 2, 3)


def test_without_anything_the_defaults_hold() -> None:
    """They are those of the middleware, so that both ways to set up are one."""
    settings = Settings()
    different = {
        name: (getattr(settings, name), default)
        for name, default in DEFAULTS.items()
        if name in Settings.model_fields and getattr(settings, name) != default
    }
    assert not different


def test_every_option_of_the_middleware_is_a_setting() -> None:
    """All but your own callable, which no file can hold."""
    assert set(Options.__annotations__) - set(Settings.model_fields) == {"classify"}


def test_every_option_of_the_controller_is_a_setting() -> None:
    """All but objects: another backend, observers; the mode has the middleware's name for it."""
    options = set(inspect.signature(AdmissionController).parameters)
    assert options - set(Settings.model_fields) == {"backend", "observers", "backpressure_mode"}


def test_a_class_table_has_the_options_of_a_class() -> None:
    """Names and defaults are those of `PriorityClass`."""
    ours = {name: field.default for name, field in ClassSettings.model_fields.items() if name != "weights"}
    theirs = {field.name: field.default for field in fields(PriorityClass) if field.name != "weights"}
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if name != "name")
    assert ClassSettings(name="x").build({}) == PriorityClass(name="x")


@pytest.mark.parametrize(
    ("table", "limit"),
    [(AimdSettings, AimdLimit), (GradientSettings, GradientLimit), (VegasSettings, VegasLimit)],
)
def test_a_limit_table_has_the_options_of_a_limit(table: Any, limit: Any) -> None:
    """Names and defaults are those of the class; each kind starts with 16 slots, as far as its bounds allow."""
    parameters = inspect.signature(limit).parameters
    ours = {name: field.default for name, field in table.model_fields.items()}
    assert ours.keys() - {"kind", "window", "least_samples"} == parameters.keys()
    assert all(ours[name] == found.default for name, found in parameters.items() if name != "initial")


@pytest.mark.parametrize(
    ("variable", "text", "option", "expected"),
    [
        ("ADMISSION_MAX_WAIT", "none", "max_wait", None),
        ("ADMISSION_MAX_WAIT", "2.5", "max_wait", 2.5),
        ("ADMISSION_MAX_WAIT", "", "max_wait", 30.0),
        ("ADMISSION_REFUSE_HOPELESS", "true", "refuse_hopeless", True),
        ("ADMISSION_EXEMPT_PATHS", "/health, /ping", "exempt_paths", ("/health", "/ping")),
        ("ADMISSION_EXEMPT_PATHS", '["/health"]', "exempt_paths", ("/health",)),
        ("ADMISSION_TIERS", '{"gold": "high"}', "tiers", {"gold": "high"}),
        ("ADMISSION_TIERS__GOLD", "high", "tiers", {"gold": "high"}),
        ("admission_max_concurrency", "3", "max_concurrency", 3),
        ("ADMISSION_CLASSES", '[{"name": "only"}]', "classes", (ClassSettings(name="only"),)),
    ],
)
def test_environment_variables_are_read(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, option: str, expected: object
) -> None:
    """Text becomes the option's type; lists may be written with commas, tables as JSON."""
    monkeypatch.setenv(variable, text)
    assert getattr(Settings(), option) == expected


def test_variables_that_kubernetes_sets_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service called "admission" puts these into every pod."""
    for name in ("ADMISSION_PORT", "ADMISSION_SERVICE_HOST", "ADMISSION_PORT_80_TCP_ADDR"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:80")
    assert Settings().max_concurrency == 8


# ---------------------------------------------------------------------- files


def test_headings_only_group(file: File) -> None:
    """With or without them a file says the same."""
    plain = Settings(config=file('max_concurrency = 3\ntrust_headers = true\nmetrics_namespace = "x"\n', "a.toml"))
    grouped = Settings(
        config=file('[pool]\nmax_concurrency = 3\n[http]\ntrust_headers = true\n[metrics]\nnamespace = "x"\n', "b.toml")
    )
    assert plain.model_dump(exclude={"config"}) == grouped.model_dump(exclude={"config"})


def test_both_example_files_say_the_same() -> None:
    """TOML and YAML are two spellings; the examples are valid."""
    toml, yaml = (Settings(config=EXAMPLES / f"admission.{ending}") for ending in ("toml", "yaml"))
    assert toml.model_dump(exclude={"config"}) == yaml.model_dump(exclude={"config"})
    assert toml.model_dump(exclude={"config"}) != Settings().model_dump(exclude={"config"})


def test_a_yaml_file_can_run_no_code(file: File) -> None:
    """Tags that make Python objects are errors."""
    name = file("name: !!python/object/apply:os.getcwd []\n", "evil.yaml")
    with pytest.raises(ValueError, match=r"evil.yaml:1: no valid YAML"):
        Settings(config=name)


def test_an_empty_file_changes_nothing(file: File) -> None:
    """Neither an empty TOML file nor an empty YAML one."""
    assert Settings(config=file("", "a.yaml")).max_concurrency == 8
    assert Settings(config=file("", "a.toml")).max_concurrency == 8


def test_none_as_config_reads_no_file(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keyword wins, also over the variable that names the file."""
    monkeypatch.setenv("ADMISSION_CONFIG", file("max_concurrency = 1\n"))
    assert Settings(config=None).max_concurrency == 8


# ---------------------------------------------------------------------- what settings become


@pytest.mark.anyio
async def test_a_controller_is_as_the_settings_say() -> None:
    """Size of the pool and of the line, mode, classes with the tenants' weights."""
    settings = Settings(
        name="chat",
        max_concurrency=3,
        max_queue_size=7,
        mode="block",
        max_wait=None,
        classes=[{"name": "fast"}, PriorityClass(name="slow", guaranteed=0.2, weights={"acme": 5})],
        tenants=[{"name": "acme", "weight": 2}, {"name": "plain"}],
    )
    controller = settings.build_controller()
    seen = controller.snapshot()
    assert (seen.pool, seen.limit, seen.max_queue_size, seen.mode) == ("chat", 3, 7, "block")
    assert controller.max_wait is None
    assert [found.name for found in controller.classes] == ["fast", "slow"]
    assert dict(controller.classes[0].weights) == {"acme": 2}
    assert dict(controller.classes[1].weights) == {"acme": 5}


@pytest.mark.anyio
async def test_tenants_in_the_metrics_are_tenants_in_the_snapshot() -> None:
    """One option is enough: the pool keeps as many names as the metrics show."""
    controller = Settings(metrics_tenants=5).build_controller()
    controller.acquire_nowait(tenant="acme")
    assert [seen.tenant for seen in controller.snapshot().tenants] == ["acme"]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["aimd", "gradient", "vegas"])
async def test_a_limit_table_makes_the_limit_adapt(kind: str) -> None:
    """It starts inside its bounds, whatever its default."""
    controller = Settings(limit={"kind": kind, "least": 2, "most": 5}).build_controller()
    assert controller.snapshot().limit == 5


def test_a_limit_without_a_window_learns_from_every_sample() -> None:
    """`window = "none"` takes the decorator off."""
    limit = Settings(limit={"kind": "aimd", "window": "none"}).limit
    assert limit is not None
    assert isinstance(limit.build(), AimdLimit)


def test_the_middleware_gets_its_options() -> None:
    """Tenants, paths and the token in the middleware's own words; every option is one it knows."""
    options = Settings(
        tenants=[{"name": "acme", "tier": "pro", "keys": [f"sha256:{DIGEST}"]}],
        paths={"/v1/batches/*": "low", "/slow": {"slots": 2}},
        status_token="hush",
        mode="shadow",
    ).middleware_options()
    assert options["tenants"] == (Tenant(name="acme", tier="pro", keys=(DIGEST,)),)
    assert options["paths"] == {"/v1/batches/*": Classification(priority="low"), "/slow": Classification(slots=2)}
    assert options["status_token"] == "hush"
    assert options["mode"] == "shadow"
    assert isinstance(options.pop("controller"), AdmissionController)
    assert options.keys() <= set(get_args(Options) or Options.__annotations__)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """An app that is never called."""


@pytest.mark.anyio
async def test_the_middleware_without_arguments_reads_environment_and_file(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `vllm serve --middleware admission.QoSAdmission` does."""
    monkeypatch.setenv("ADMISSION_CONFIG", file('max_concurrency = 2\n[[classes]]\nname = "only"\n'))
    monkeypatch.setenv("ADMISSION_MAX_QUEUE_SIZE", "5")
    seen = QoSAdmission(app).controller.snapshot()
    assert (seen.limit, seen.max_queue_size, [found.name for found in seen.classes]) == (2, 5, ["only"])


def test_observers_are_made_when_asked_for() -> None:
    """Logs and traces cost something on every request, so nobody gets them unasked."""
    assert Settings()._own_observers() == []
    log, trace = Settings(log_events=True, tracing=True)._own_observers()
    assert isinstance(log, LogObserver)
    assert isinstance(trace, TracingObserver)


@pytest.mark.parametrize("secret", ["hush-hush", DIGEST])
def test_no_secret_is_in_the_text_of_settings(secret: str) -> None:
    """Logs and tracebacks print settings; the token and the keys' digests stay out of them."""
    settings = Settings(status_token="hush-hush", tenants=[{"name": "acme", "keys": [DIGEST]}])
    assert secret not in repr(settings)
    assert secret not in str(settings)
    assert secret not in str(settings.middleware_options()["tenants"])


def test_settings_do_not_change() -> None:
    """They are read once; what is made of them is another matter."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().max_concurrency = 3


def test_options_of_the_module_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function the middleware calls is `Settings` and nothing more."""
    monkeypatch.setenv("ADMISSION_REFUSAL_STATUS", "503")
    assert middleware_options()["refusal_status"] == 503


def test_settings_need_no_extra() -> None:
    """With the core installed alone, everything but YAML, metrics and traces works; asked for, they name themselves."""
    script = """
import sys
for package in ("yaml", "prometheus_client", "opentelemetry", "click", "rich", "uvicorn", "trio"):
    sys.modules[package] = None
from admission.config import Settings, SettingsError
Settings(log_events=True).build_controller()
try:
    Settings(config="admission.yaml")
except SettingsError as error:
    print(error)
"""
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=EXAMPLES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "YAML files need the extra: pip install 'admission[yaml]'" in done.stdout
