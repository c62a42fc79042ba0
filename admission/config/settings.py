"""`Settings`: every option, where its value comes from, and the objects it becomes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as EnvironmentValueError

from admission.asgi.classify import KEY_HEADERS, PRIORITY_HEADERS
from admission.asgi.options import EXEMPT_PATHS, Options, PoolOptions, SharedPoolOptions
from admission.backends.redis import RedisPool
from admission.config.checks import contradictions
from admission.config.file import SettingsError, read_settings_file
from admission.config.headings import HEADINGS, flat
from admission.config.messages import PREFIX, Sources, refuse_misspelt_variables, unreadable_variable
from admission.config.tables import (
    OPTIONS_OF_TABLES,
    Bytes,
    ClassSettings,
    LimitSettings,
    Names,
    Namespace,
    NoneOr,
    PathSettings,
    Patience,
    Seconds,
    Status,
    TenantSettings,
    TrustedNetworks,
    Whole,
    between,
    none_in_words,
)
from admission.controller import AdmissionController
from admission.events import Observer
from admission.observability.logging import LogObserver
from admission.observability.tenants import TenantTotals
from admission.types import DEFAULT_CLASSES, PriorityClass


class Settings(BaseSettings):
    """Every option of a pool and of the middleware in front of it, from keywords, environment and file.

    Args:
        config: A TOML or YAML file. None: the one that `ADMISSION_CONFIG` names, if it does.

    Raises:
        SettingsError: An option is unknown or outside its range. The message names it, its value, what is
            allowed and where it stands. It is a `ValueError`.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True, extra="forbid", frozen=True
    )

    config: Annotated[Path | None, NoneOr] = None

    # The pool
    name: Annotated[str, Field(min_length=1)] = "default"
    max_concurrency: Whole = 8
    limit: LimitSettings | None = None
    """Lets the number of slots adapt, in place of `max_concurrency`."""
    max_queue_size: Annotated[int, between(0)] = 100
    mode: Literal["reject", "block", "shadow"] = "reject"
    max_wait: Annotated[Seconds | None, NoneOr] = 30.0
    classes: tuple[ClassSettings, ...] | None = None
    default_priority: str | None = None
    max_lobby_size: Annotated[int, between(0)] = 10_000
    max_queued_per_tenant: Annotated[Whole | None, NoneOr] = None
    refuse_hopeless: bool = False
    retry_after: Annotated[float, between(1, 30)] = 5.0
    top_tenants: Annotated[int, between(0, 1000)] = 0

    # Where it is kept
    redis: Annotated[SecretStr | None, NoneOr] = None
    """A secret: a URL may have a password in it."""
    redis_namespace: Namespace = "admission"
    on_outage: Literal["degrade", "open", "closed"] = "degrade"
    redis_lease: Annotated[float, between(1, 600)] = 12.0
    redis_timeout: Annotated[float, between(0.01, 60)] = 1.0

    # Who asks
    trust_headers: bool = False
    priority_headers: Names = PRIORITY_HEADERS
    key_headers: Names = KEY_HEADERS
    tenants: tuple[TenantSettings, ...] = ()
    tiers: dict[str, str] | None = None
    paths: dict[str, PathSettings] = {}
    anonymous_priority: str | None = None
    numeric_priorities: Annotated[Literal["low-first", "high-first"] | None, NoneOr] = None
    tenant_by_address: bool = False
    trusted_proxies: TrustedNetworks = ()

    # Requests and responses
    exempt_paths: Names = EXEMPT_PATHS
    exempt_methods: Names = ("OPTIONS",)
    websockets: bool = True
    response_headers: bool = True
    refusal_format: Literal["auto", "openai", "problem"] = "auto"
    refusal_status: Status = 429
    draining_status: Status = 503
    spool_bytes: Bytes = 2**20
    spool_budget: Bytes = 64 * 2**20
    refused_upload_bytes: Bytes = 2**20
    upload_grace: Annotated[Patience | None, NoneOr] = 10.0
    min_upload_rate: Annotated[float, between(1, 2**40)] = 1024.0
    stall_timeout: Annotated[Patience | None, NoneOr] = 60.0
    release_on: Literal["return", "last_byte"] = "return"
    cancel_on_disconnect: bool = False
    queue_status: Annotated[Literal["sse-comments"] | None, NoneOr] = None
    queue_status_after: Annotated[float, between(0, 86400)] = 2.0
    queue_status_every: Patience = 5.0
    status_path: Annotated[str | None, NoneOr] = "/-/admission"
    status_token: SecretStr | None = None
    status_loopback: bool = True
    drain_on_signal: bool = True

    # Watching
    metrics_namespace: Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")] = "admission"
    metrics_tenants: Annotated[int, between(0, 1000)] = 0
    metrics_port: Annotated[Annotated[int, between(0, 65535)] | None, NoneOr] = None
    metrics_host: str = "127.0.0.1"
    log_format: Literal["text", "json"] = "text"
    log_events: bool = False
    log_tenants: bool = False
    tracing: bool = False

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except EnvironmentValueError as error:
            raise unreadable_variable(error) from None
        except ValidationError as error:
            # From None: pydantic's own text shows the values of secrets.
            raise SettingsError("\n".join(_sources(options).sentence(found) for found in error.errors())) from None
        refuse_misspelt_variables(os.environ, type(self).model_fields)
        problems = list(contradictions(self))
        if problems:
            sources = _sources(options)
            raise SettingsError("\n".join(sources.told(key, value, rule) for key, value, rule in problems))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keywords, then the environment, then the file."""
        return init_settings, env_settings, _FileSource(settings_cls)

    def build_classes(self) -> tuple[PriorityClass, ...]:
        """The pool's classes, in order of rank, with the tenants' weights in them."""
        weights = {tenant.name: tenant.weight for tenant in self.tenants if tenant.weight != 1.0}
        if self.classes is None:
            return tuple(replace(found, weights=weights) for found in DEFAULT_CLASSES)
        return tuple(table.build(weights) for table in self.classes)

    def shared_pool(self) -> RedisPool | None:
        """Where the pool is kept that several processes share; None: in this process."""
        if self.redis is None:
            return None
        return RedisPool(
            self.redis.get_secret_value(),
            namespace=self.redis_namespace,
            on_outage=self.on_outage,
            lease=self.redis_lease,
            timeout=self.redis_timeout,
        )

    def build_controller(self, *, observers: Sequence[Observer] = ()) -> AdmissionController:
        """A controller as these settings describe it, with its log and trace observers and *observers*."""
        return AdmissionController(
            max_concurrency=self.max_concurrency if self.limit is None else self.limit.build(),
            # In shadow mode the middleware lets in whoever the pool would have refused.
            backpressure_mode="reject" if self.mode == "shadow" else self.mode,
            classes=self.build_classes(),
            backend=self.shared_pool(),
            observers=[*self._own_observers(), *observers],
            # Tenants can only be shown by name if the pool knows their names.
            top_tenants=max(self.top_tenants, self.metrics_tenants),
            **self.model_dump(include=_CONTROLLER_OPTIONS),
        )

    def middleware_options(self) -> dict[str, object]:
        """Keyword arguments for `QoSAdmission`: a controller made of these settings, and all that concerns
        HTTP."""
        options: dict[str, object] = {name: getattr(self, name) for name in _HTTP_OPTIONS}
        options["tenants"] = tuple(tenant.build() for tenant in self.tenants)
        options["paths"] = {path: said.build() for path, said in self.paths.items()}
        options["status_token"] = self.status_token.get_secret_value() if self.status_token else None
        options["mode"] = self.mode
        options["controller"] = self.build_controller()
        return options

    def _own_observers(self) -> list[Observer]:
        observers: list[Observer] = []
        if self.log_events:
            observers.append(LogObserver(tenants=self.log_tenants))
        if self.metrics_tenants:
            observers.append(TenantTotals(most=self.metrics_tenants))
        if self.tracing:
            from admission.observability.tracing import TracingObserver

            observers.append(TracingObserver(tenants=self.log_tenants))
        return observers


_CONTROLLER_OPTIONS = set(PoolOptions.__annotations__) - {"max_concurrency", "classes", "top_tenants"}
_HTTP_OPTIONS = (
    set(Options.__annotations__)
    - set(PoolOptions.__annotations__)
    - set(SharedPoolOptions.__annotations__)
    - {"classify", "mode"}
)


class _FileSource(PydanticBaseSettingsSource):
    """The file that a keyword or the environment names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[object, str, bool]:
        """Not used: a file is read as a whole."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        path = none_in_words(self.current_state.get("config"))
        return {} if path is None else flat(read_settings_file(Path(str(path))))[0]


def _sources(given: Mapping[str, object]) -> Sources:
    path = none_in_words(given.get("config", os.environ.get(f"{PREFIX}CONFIG") or None))
    file = None if path is None else read_settings_file(Path(str(path)))
    origins = {} if file is None else flat(file)[1]
    return Sources(given, file, origins, {"": [*Settings.model_fields, *HEADINGS], **OPTIONS_OF_TABLES})
