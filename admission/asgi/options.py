"""Every option of `QoSAdmission`, with its default and its range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, get_args

from admission.asgi.classify import KEY_HEADERS, PRIORITY_HEADERS, Classification, Classify, Tenant, is_plain
from admission.backends.redis import RedisPool
from admission.policy.limit import Limit
from admission.types import BackpressureMode, Priority, PriorityClass, within

Mode = Literal["reject", "block", "shadow"]
RefusalFormat = Literal["auto", "openai", "problem"]
ReleaseOn = Literal["return", "last_byte"]
OnOutage = Literal["degrade", "open", "closed"]

EXEMPT_PATHS = ("/health", "/healthz", "/livez", "/readyz", "/ping", "/metrics", "/metrics/")
# The last is where an app mounted at /metrics answers.


class PoolOptions(TypedDict, total=False):
    """Options of the controller that `QoSAdmission` makes when it is given none."""

    max_concurrency: int | Limit
    """Slots: requests let in at once. Default 8."""
    max_queue_size: int
    """Requests in line at most; 0 is unlimited. Default 100."""
    max_wait: float | None
    """Seconds in line at most; None is for ever. Default 30."""
    classes: Sequence[PriorityClass] | None
    """Highest rank first. Default critical, high, normal, low."""
    name: str
    """Of the pool. Two middlewares of one name take one slot between them. Default "default"."""
    default_priority: str | Priority | None
    max_lobby_size: int
    max_queued_per_tenant: int | None
    refuse_hopeless: bool
    retry_after: float
    """Seconds to name while no rate is known. Default 5."""
    top_tenants: int


class SharedPoolOptions(TypedDict, total=False):
    """Where a pool is kept that several processes share. All but `redis` need `redis`."""

    redis: str | RedisPool | None
    """URL of a Redis or Valkey (`redis://`, `rediss://`, `valkey://`, `unix://`, `redis+sentinel://`,
    `redis+cluster://`), "embedded" for a private one on this machine, or a `RedisPool`, which has the other options
    in it. Default None: the pool is this process's own."""
    redis_namespace: str
    """Put before every key. Default "admission"."""
    on_outage: OnOutage
    """While the server cannot be reached: "degrade" (default) lets in this process's share of the limit, "open"
    everyone, "closed" no one."""
    redis_lease: float
    """Seconds after which the slots of a process that was killed are free again, 1 … 600. Default 12."""
    redis_timeout: float
    """Seconds a call to the server may take, 0.01 … 60, at most a third of the lease. Default 1."""


class Options(PoolOptions, SharedPoolOptions, total=False):
    """Keyword arguments of `QoSAdmission`."""

    mode: Mode | BackpressureMode
    """What a full line does: "reject" (default) refuses at once, "block" lets callers wait for room. "shadow" decides
    and counts, but lets every request in at once: how to try this out in production."""

    trust_headers: bool
    """Priority headers may raise as well as lower, and tenant headers count. Only behind a gateway that sets them
    and strips the client's own. Default False."""
    priority_headers: Sequence[str]
    key_headers: Sequence[str]
    tenants: Sequence[Tenant]
    """Customers: name, tier and SHA-256 of their API keys."""
    tiers: Mapping[str, str] | None
    """Tier → class."""
    paths: Mapping[str, str | Classification]
    """Path → class. `/v1/batches/*` covers all below."""
    anonymous_priority: Priority | str | None
    numeric_priorities: Literal["low-first", "high-first"] | None
    tenant_by_address: bool
    trusted_proxies: Sequence[str]
    """Networks whose `X-Forwarded-For` is believed."""
    classify: Classify | None
    """Your own callable, sync or async: ASGI scope → `Classification`, or None to leave it to the rules."""

    exempt_paths: Sequence[str]
    """Let through without a ticket; exact paths. Default: health checks and /metrics."""
    exempt_methods: Sequence[str]
    """Default OPTIONS: a CORS preflight answers in microseconds and must not wait behind what it asks for."""
    websockets: bool
    """One permit for each connection, as long as it lasts. False lets WebSockets through. Default True."""

    response_headers: bool
    """`x-queue-class`, `x-queue-position`, `x-queue-wait-ms`, `x-queue-ticket`, `server-timing`. Default True."""
    refusal_format: RefusalFormat
    """"auto" (default): OpenAI's error body, or RFC 9457 where `Accept` asks for application/problem+json."""
    refusal_status: int
    """Status of a refusal under load: 400 … 599, default 429."""
    draining_status: int
    """Status of a refusal because the server is going away, or cannot reach its shared pool: 400 … 599, default 503."""

    spool_bytes: int
    """Bytes of one request's body read while it waits; past that its client's leaving goes unnoticed. Default 1 MiB."""
    spool_budget: int
    """Bytes of all waiting requests' bodies together. Default 64 MiB."""
    refused_upload_bytes: int
    """Bytes of a refused request's body that are read and thrown away, so that its client sees the answer.
    Default 1 MiB."""
    upload_grace: float | None
    """Seconds a body is waited for before a slot is asked for, and seconds a client that still uploads while it holds
    one may lag behind `min_upload_rate`. None: for ever. Default 10."""
    min_upload_rate: float
    """Bytes per second. Default 1024."""
    stall_timeout: float | None
    """Seconds a streaming response may wait for its reader before it is aborted. None: for ever. Default 60."""
    release_on: ReleaseOn
    """"return" (default): the permit is held until the app has returned, background tasks included.
    "last_byte": until the last byte of the response was handed to the server."""
    cancel_on_disconnect: bool
    """Cancel the app when its client leaves while it runs. Default False: the app is told as always."""

    queue_status: Literal["sse-comments"] | None
    """"sse-comments": clients that stream get `: queue position=3 eta=12` lines while they wait."""
    queue_status_after: float
    """Seconds of waiting before the first of those lines (and with it status 200) goes out. Default 2."""
    queue_status_every: float
    """Seconds between them. Default 5."""

    status_path: str | None
    """Where status, tickets and dump are served; None: nowhere. Default "/-/admission"."""
    status_token: str | None
    """Bearer token for them. None: only for this machine, see `status_loopback`."""
    status_loopback: bool
    """Without a token: answer requests over the loopback interface that no proxy has passed on. Default True."""
    drain_on_signal: bool
    """On SIGTERM and SIGINT whoever waits is sent away at once and running work goes on. Default True."""


DEFAULTS: Options = {
    "max_concurrency": 8,
    "max_queue_size": 100,
    "max_wait": 30.0,
    "classes": None,
    "name": "default",
    "default_priority": None,
    "max_lobby_size": 10_000,
    "max_queued_per_tenant": None,
    "refuse_hopeless": False,
    "retry_after": 5.0,
    "top_tenants": 0,
    "redis": None,
    "redis_namespace": "admission",
    "on_outage": "degrade",
    "redis_lease": 12.0,
    "redis_timeout": 1.0,
    "mode": "reject",
    "trust_headers": False,
    "priority_headers": PRIORITY_HEADERS,
    "key_headers": KEY_HEADERS,
    "tenants": (),
    "tiers": None,
    "paths": {},
    "anonymous_priority": None,
    "numeric_priorities": None,
    "tenant_by_address": False,
    "trusted_proxies": (),
    "classify": None,
    "exempt_paths": EXEMPT_PATHS,
    "exempt_methods": ("OPTIONS",),
    "websockets": True,
    "response_headers": True,
    "refusal_format": "auto",
    "refusal_status": 429,
    "draining_status": 503,
    "spool_bytes": 2**20,
    "spool_budget": 64 * 2**20,
    "refused_upload_bytes": 2**20,
    "upload_grace": 10.0,
    "min_upload_rate": 1024.0,
    "stall_timeout": 60.0,
    "release_on": "return",
    "cancel_on_disconnect": False,
    "queue_status": None,
    "queue_status_after": 2.0,
    "queue_status_every": 5.0,
    "status_path": "/-/admission",
    "status_token": None,
    "status_loopback": True,
    "drain_on_signal": True,
}

_CHOICES: Mapping[str, tuple[object, ...]] = {
    "mode": get_args(Mode),
    "refusal_format": get_args(RefusalFormat),
    "release_on": get_args(ReleaseOn),
    "queue_status": ("sse-comments", None),
    "numeric_priorities": ("low-first", "high-first", None),
}
_RANGES: Mapping[str, tuple[float, float]] = {
    "refusal_status": (400, 599),
    "draining_status": (400, 599),
    "spool_bytes": (0, 2**40),
    "spool_budget": (0, 2**40),
    "refused_upload_bytes": (0, 2**40),
    "min_upload_rate": (1, 2**40),
    "upload_grace": (0.1, 86400),
    "stall_timeout": (0.1, 86400),
    "queue_status_after": (0, 86400),
    "queue_status_every": (0.1, 86400),
}


def resolve(given: Mapping[str, Any]) -> Options:
    """*given* over the defaults, checked.

    Raises:
        TypeError: No such option.
        ValueError: A value is outside its range; the message names option, value and range.
    """
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise TypeError(f"QoSAdmission has no option {unknown[0]!r}; it has {', '.join(DEFAULTS)}")
    for option, allowed in _CHOICES.items():
        if option in given and given[option] not in allowed:
            raise ValueError(f"{option} is {given[option]!r}: it must be one of {list(allowed)}")
    for option, (low, high) in _RANGES.items():
        within(option, given.get(option), low, high)
    for path in (*given.get("exempt_paths", ()), *filter(None, [given.get("status_path")])):
        if not is_plain(path):
            raise ValueError(f"exempt_paths or status_path has {path!r}: it must be a plain path such as '/health'")
    if given.get("status_token") == "":
        raise ValueError("status_token is '': it must not be empty; leave it out to have none")
    _require_redis(given)
    options: Options = {**DEFAULTS, **given}  # type: ignore[typeddict-item]  # names were checked above
    return options


def pool_options(options: Options) -> PoolOptions:
    """Those of *options* that are the controller's, under the same names."""
    return {key: options[key] for key in PoolOptions.__annotations__}  # type: ignore[literal-required,return-value]


def shared_pool(options: SharedPoolOptions) -> RedisPool | None:
    """Where the pool is kept; None: in this process. All of the options must be there.

    Raises:
        ValueError: One is outside its range.
    """
    redis = options["redis"]
    if redis is None or isinstance(redis, RedisPool):
        return redis
    try:
        return RedisPool(
            redis,
            namespace=options["redis_namespace"],
            on_outage=options["on_outage"],
            lease=options["redis_lease"],
            timeout=options["redis_timeout"],
        )
    except ValueError as error:
        option = str(error).partition(" is ")[0]
        # What a `RedisPool` calls `lease` is `redis_lease` here.
        raise ValueError(f"redis_{error}" if f"redis_{option}" in options else str(error)) from None


def _require_redis(given: Mapping[str, Any]) -> None:
    """Refuse options of a shared pool where there is none, or where the pool has them already."""
    redis = given.get("redis")
    if isinstance(redis, str):
        return
    if redis is not None and not isinstance(redis, RedisPool):
        # The value is not shown: whatever it is, a password may be in it.
        raise ValueError(f"redis is of type {type(redis).__name__}: it must be a URL, a RedisPool or None")
    for option in SharedPoolOptions.__annotations__:
        if option != "redis" and option in given:
            where = "is set in the RedisPool" if redis is not None else "needs redis, which says where the pool is"
            raise ValueError(f"{option} is {given[option]!r}: it {where}")
