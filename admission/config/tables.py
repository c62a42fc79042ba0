"""What an option's value may be: ranges, and the tables of a settings file.

Ranges and defaults are those of the objects the tables become; a test holds the two together.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import NoDecode

from admission.asgi.classify import Classification, Tenant
from admission.policy.limit import AimdLimit, GradientLimit, Limit, VegasLimit, WindowedLimit
from admission.types import PriorityClass, within

Number = TypeVar("Number", int, float)


def between(low: float, high: float = math.inf, *, above_low: bool = False) -> AfterValidator:
    """A check whose error names the whole allowed range, not only the bound that was crossed."""

    def check(value: Number) -> Number:
        try:
            within("", value, low, high, above_low=above_low)
        except ValueError as error:
            raise PydanticCustomError("range", "{rule}", {"rule": str(error).partition(": ")[2]}) from None
        return value

    return AfterValidator(check)


def none_in_words(value: object) -> object:
    """TOML and environment variables know no null: `"none"` is written instead."""
    return None if isinstance(value, str) and value.lower() == "none" else value


def comma_separated(value: object) -> object:
    """`/health, /ping` for environment variables, which know no lists; JSON is read, too."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


def _sha256(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"(sha256:)?[0-9a-fA-F]{64}", value):
        return value.removeprefix("sha256:").lower()
    # The value is not shown: it may well be the plain key.
    rule = 'a SHA-256 in 64 hex digits must stand here, as printf %s "$KEY" | sha256sum prints it'
    raise PydanticCustomError("range", "{rule}", {"rule": rule})


def _network(value: object) -> object:
    try:
        ipaddress.ip_network(str(value))
    except ValueError as error:
        raise PydanticCustomError("range", "{rule}", {"rule": f"it must be a network: {error}"}) from None
    return value


Whole = Annotated[int, between(1)]
Seconds = Annotated[float, between(0)]
Positive = Annotated[float, between(0, above_low=True)]
Share = Annotated[float, between(0, 1)]
Weight = Annotated[float, between(0.001, 1000)]
NoneOr = BeforeValidator(none_in_words)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassSettings(_Table):
    """One `[[classes]]` table. Options, ranges and meaning are those of `PriorityClass`; their order is the
    rank."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.-]+$")]
    guaranteed: Share = 0.0
    ceiling: Annotated[float, between(0, 1, above_low=True)] = 1.0
    max_delay: Annotated[Seconds | None, NoneOr] = None
    rate: Annotated[Positive | None, NoneOr] = None
    burst: Annotated[Whole | None, NoneOr] = None
    max_queued: Annotated[Whole | None, NoneOr] = None
    max_wait: Annotated[Seconds | None, NoneOr] = None
    weights: dict[str, Weight] = {}
    codel_target: Annotated[Positive | None, NoneOr] = None
    codel_interval: Annotated[Positive | None, NoneOr] = None
    exempt: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_class(cls, value: object) -> object:
        if isinstance(value, PriorityClass):
            return {part.name: getattr(value, part.name) for part in fields(value)}
        return value

    def build(self, weights: Mapping[str, float]) -> PriorityClass:
        """The class, with *weights* of tenants that the table itself gives none."""
        return PriorityClass(**self.model_dump(exclude={"weights"}), weights={**weights, **self.weights})


class _Adaptive(_Table):
    """What the adaptive limits share: their bounds, and the window that makes single requests a
    measurement."""

    initial: Whole | None = None
    least: Whole = 1
    most: Whole = 1000
    window: Annotated[Positive | None, NoneOr] = 1.0
    least_samples: Whole = 10

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.least > self.most or not self.least <= self.start <= self.most:
            raise PydanticCustomError("range", "{rule}", {"rule": "least ≤ initial ≤ most must hold"})
        return self

    def build(self) -> Limit:
        """The limit, inside a window unless that is none."""
        options = self.model_dump(exclude={"kind", "window", "least_samples"}) | {"initial": self.start}
        limit = self._kind(options)
        if self.window is None:
            return limit
        return WindowedLimit(limit, window=self.window, least_samples=self.least_samples)

    @property
    def start(self) -> int:
        """Slots to start with: as given, or 16 as far as the bounds allow."""
        return self.initial if self.initial is not None else min(max(16, self.least), self.most)

    def _kind(self, options: Mapping[str, Any]) -> Limit:
        raise NotImplementedError


class AimdSettings(_Adaptive):
    """`[limit]` with `kind = "aimd"`; the options of `AimdLimit`."""

    kind: Literal["aimd"]
    backoff: Annotated[float, between(0.5, 0.999)] = 0.9
    timeout: Annotated[Positive | None, NoneOr] = None

    def _kind(self, options: Mapping[str, Any]) -> Limit:
        return AimdLimit(**options)


class GradientSettings(_Adaptive):
    """`[limit]` with `kind = "gradient"`; the options of `GradientLimit`."""

    kind: Literal["gradient"]
    tolerance: Annotated[float, between(1)] = 1.5
    queue: Whole = 4
    smoothing: Annotated[float, between(0, 1, above_low=True)] = 0.2
    long_window: Whole = 600

    def _kind(self, options: Mapping[str, Any]) -> Limit:
        return GradientLimit(**options)


class VegasSettings(_Adaptive):
    """`[limit]` with `kind = "vegas"`; the options of `VegasLimit`."""

    kind: Literal["vegas"]
    probe_every: Whole = 30

    def _kind(self, options: Mapping[str, Any]) -> Limit:
        return VegasLimit(**options)


LimitSettings = Annotated[AimdSettings | GradientSettings | VegasSettings, Field(discriminator="kind")]


class TenantSettings(_Table):
    """One `[[tenants]]` table: who it is, its tier, its weight in every class, and the SHA-256 of its API
    keys."""

    name: Annotated[str, Field(min_length=1)]
    tier: str | None = None
    weight: Weight = 1.0
    keys: tuple[Annotated[str, BeforeValidator(_sha256)], ...] = Field(default=(), repr=False)

    def build(self) -> Tenant:
        """The tenant as the middleware knows it."""
        return Tenant(name=self.name, tier=self.tier, keys=self.keys)


class PathSettings(_Table):
    """What one entry of `[paths]` says: a class, or a table of these options."""

    priority: str | None = None
    tenant: str | None = None
    cost: Seconds | None = None
    slots: Annotated[int, between(1, 1000)] = 1
    max_wait: Seconds | None = None

    @model_validator(mode="before")
    @classmethod
    def _class_alone(cls, value: object) -> object:
        return {"priority": value} if isinstance(value, str) else value

    def build(self) -> Classification:
        """The same for the middleware."""
        return Classification(**self.model_dump())


def _namespace(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        rule = "it must be 1 to 64 letters, digits, '_', '.' or '-'"
        raise PydanticCustomError("range", "{rule}", {"rule": rule})
    return value


Namespace = Annotated[str, AfterValidator(_namespace)]
"""Put before the keys of a shared pool."""

Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(comma_separated)]
Status = Annotated[int, between(400, 599)]
Bytes = Annotated[int, between(0, 2**40)]
Patience = Annotated[float, between(0.1, 86400)]

TrustedNetworks = Annotated[
    tuple[Annotated[str, AfterValidator(_network)], ...], NoDecode, BeforeValidator(comma_separated)
]
"""Networks such as `10.0.0.0/8`."""

OPTIONS_OF_TABLES: Mapping[str, tuple[str, ...]] = {
    "classes": tuple(ClassSettings.model_fields),
    "tenants": tuple(TenantSettings.model_fields),
    "paths": tuple(PathSettings.model_fields),
    "limit": tuple(
        dict.fromkeys(
            option for kind in (AimdSettings, GradientSettings, VegasSettings) for option in kind.model_fields
        )
    ),
}
"""What may stand in each table, for suggestions."""
