"""Who asks, and which class that makes it: headers, RFC 9218, API keys → tenants → tiers, paths, your own callable.

The rules, in order:

1. An API key names a tenant, the tenant's tier names a class. Without a known key the caller is anonymous and has
   the default class. A path rule replaces that class. This is what the caller is *allowed*.
2. A header (`X-Priority: low`, RFC 9218 `Priority: u=5`) may lower it and never raise it, unless `trust_headers`
   says that a gateway in front sets these headers and strips the client's own.
3. Your own `classify` callable is server code: what it says holds.

A value that means nothing (unknown class, a header sent twice, one longer than `MAX_HEADER_BYTES`) counts as not sent;
`RequestCounts` says how often that happened. No client can make a request fail, or a table grow, with a header.

What a set of header fields means is worked out once and then remembered, so that SHA-256 and parsing are not paid
on every request; the memory is bounded and only holds fields that made sense.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hmac import compare_digest
from typing import Any, Literal, Protocol

from admission.asgi.verdict import PathRule, Verdict
from admission.types import MAX_TENANT_BYTES, Priority, PriorityClass, within

Scope = Mapping[str, Any]
Headers = Sequence[tuple[bytes, bytes]]

MAX_HEADER_BYTES = 4096
"""Longest header value that is looked at."""

REMEMBERED = 4096
"""Sets of header fields, addresses and paths whose meaning is kept at most, each."""

REMEMBERED_BYTES = 512
"""Longest set of header values whose meaning is kept."""

KEY_HEADERS = ("authorization", "x-api-key")
PRIORITY_HEADERS = ("x-priority", "priority")
TRUSTED_PRIORITY_HEADERS = ("x-request-priority", "x-llm-d-inference-objective", "x-smg-priority")
TRUSTED_TENANT_HEADERS = ("x-tenant-id", "x-llm-d-inference-fairness-id")
DEFAULT_TIERS: Mapping[str, str] = {"enterprise": "critical", "pro": "high", "free": "low"}

_RETRY_COUNT = b"x-stainless-retry-count"
_EXPECT = b"expect"
_FORWARDED_FOR = b"x-forwarded-for"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """What a path rule or your own `classify` callable says about a request. None leaves a question open.

    Args:
        priority: Class, by name or `Priority`.
        tenant: Who shares the class fairly with others, at most 128 bytes. "" is everyone without a name.
        cost: What fairness charges the tenant; None is one per slot.
        slots: Units of concurrency it holds while it runs, 1 … 1000.
        max_wait: Seconds it may wait; None uses the class's setting.

    Raises:
        ValueError: A value is outside its range.
    """

    priority: Priority | str | None = None
    tenant: str | None = None
    cost: float | None = None
    slots: int = 1
    max_wait: float | None = None

    def __post_init__(self) -> None:
        within("slots", self.slots, 1, 1000)
        within("cost", self.cost, 0)
        within("max_wait", self.max_wait, 0)
        if self.tenant is not None and len(self.tenant.encode()) > MAX_TENANT_BYTES:
            raise ValueError(f"tenant is {len(self.tenant.encode())} bytes long: it must be at most {MAX_TENANT_BYTES}")


Classify = Callable[[Scope], Classification | Awaitable[Classification | None] | None]
"""Your own classifier: gets the ASGI scope. None leaves the request to the other rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One customer: a name, a tier, and the SHA-256 of each API key, in hex.

    Keys are never configured in plain text: `printf %s "$KEY" | sha256sum` makes what belongs here.

    Raises:
        ValueError: A key is no SHA-256, or the name is empty or longer than 128 bytes.
    """

    name: str
    tier: str | None = None
    keys: Sequence[str] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= MAX_TENANT_BYTES:
            raise ValueError(f"tenant name {self.name!r}: 1 to {MAX_TENANT_BYTES} bytes are allowed")
        for number, key in enumerate(self.keys):
            if len(key) != 64 or not all(c in "0123456789abcdefABCDEF" for c in key):
                # The value is not shown: it may well be the plain key.
                raise ValueError(f"tenant {self.name!r}: key {number} must be a SHA-256 in 64 hex digits")


class Ranks(Protocol):
    """What classification asks of a controller."""

    @property
    def classes(self) -> Sequence[PriorityClass]:
        """The classes of the pool, by rank."""

    def rank_of(self, priority: Priority | str | None) -> int:
        """Rank of a class; None is the default class. Raises ValueError for an unknown one."""


@dataclass(slots=True)
class RequestCounts:
    """How often something about a request was noticed, since the middleware was made."""

    unknown_class: int = 0
    """A header or classifier named no class of this pool; the default class was used."""
    duplicate_header: int = 0
    """A header that decides something came twice; neither was believed."""
    oversized_header: int = 0
    unknown_key: int = 0
    """An API key that belongs to no tenant; the caller stayed anonymous."""
    bad_tenant: int = 0
    """A trusted tenant header with an empty, overlong or undecodable value."""
    classify_failed: int = 0
    """Your own `classify` callable raised; the other rules decided."""
    client_retry: int = 0
    """Requests an SDK sent again (`x-stainless-retry-count` above 0)."""


class Classifier:
    """Turns header fields and a path into a `Verdict`.

    Args:
        ranks: The controller.
        trust_headers: Headers may raise as well as lower, and may name the tenant.
        priority_headers: Headers that name a class; `priority` is read as RFC 9218.
        key_headers: Headers that carry an API key; a `Bearer` in front is taken off.
        tenants: Who has which keys and which tier.
        tiers: Tier → class. None: enterprise → critical, pro → high, free → low, where such classes exist.
            A tier without an entry is the class of that name.
        paths: Path → class or `Classification`; `/v1/batches/*` covers everything below `/v1/batches`.
        anonymous_priority: Class of callers without a known key. None: the pool's default class.
        numeric_priorities: How numbers are read: "low-first" as vLLM counts, "high-first" as SGLang does.
            None: a number is no class.
        tenant_by_address: Anonymous callers are told apart by address (IPv6: by /64), not lumped together.
        trusted_proxies: Networks whose `X-Forwarded-For` is believed; the rightmost address outside them counts.

    Raises:
        ValueError: An unknown class or tier, a key given to two tenants, or a bad network.
    """

    def __init__(
        self,
        ranks: Ranks,
        *,
        trust_headers: bool = False,
        priority_headers: Sequence[str] = PRIORITY_HEADERS,
        key_headers: Sequence[str] = KEY_HEADERS,
        tenants: Sequence[Tenant] = (),
        tiers: Mapping[str, str] | None = None,
        paths: Mapping[str, str | Classification] | None = None,
        anonymous_priority: Priority | str | None = None,
        numeric_priorities: Literal["low-first", "high-first"] | None = None,
        tenant_by_address: bool = False,
        trusted_proxies: Sequence[str] = (),
    ) -> None:
        self.counts = RequestCounts()
        self._ranks = ranks
        self._trust = trust_headers
        self._numeric = numeric_priorities
        self._last = len(ranks.classes) - 1
        self._default = ranks.rank_of(None)
        self._anonymous = ranks.rank_of(anonymous_priority)
        self._names = {c.name.lower().encode(): rank for rank, c in enumerate(ranks.classes)}
        self._keys = self._digests(tenants, DEFAULT_TIERS if tiers is None else tiers, strict=tiers is not None)
        self._by_address = Addresses(trusted_proxies) if tenant_by_address else None
        self._priority_headers = _lowered(priority_headers, TRUSTED_PRIORITY_HEADERS if trust_headers else ())
        self._tenant_headers = _lowered((), TRUSTED_TENANT_HEADERS if trust_headers else ())
        self._key_headers = _lowered(key_headers) if self._keys else ()
        self.relevant = frozenset(
            (*self._priority_headers, *self._tenant_headers, *self._key_headers, _RETRY_COUNT, _EXPECT)
        )
        """Names of the header fields that decide something; `verdict` wants these and no others."""
        self.anywhere = PathRule()
        """The rule of paths without a rule."""
        self._exact: dict[str, PathRule] = {}
        self._below: dict[str, PathRule] = {}
        for path, said in (paths or {}).items():
            self._add_path(path, said)

    def path_rule(self, path: str) -> PathRule:
        """The rule for a normalised *path*: an exact one first, then the longest `/*` one."""
        found = self._exact.get(path)
        if found is not None or not self._below:
            return found or self.anywhere
        while path:
            found = self._below.get(path)
            if found is not None:
                return found
            path = path.rpartition("/")[0]
        return self._below.get("", self.anywhere)

    def verdict(self, rule: PathRule, fields: tuple[bytes, ...], scope: Scope) -> Verdict:
        """What the relevant header *fields* (name, value, name, value …) mean under *rule*."""
        verdict = self._work_out(rule, fields)
        if self._by_address is not None and not verdict.tenant:
            headers: Headers = scope["headers"]
            tenant = self._by_address.tenant(scope.get("client"), headers)
            return replace(verdict, tenant=tenant)
        return verdict

    def apply(self, said: Classification, verdict: Verdict) -> Verdict:
        """What your own callable said, on top of what the rules would have."""
        rank = verdict.rank
        if said.priority is not None:
            try:
                rank = self._ranks.rank_of(said.priority)
            except ValueError:
                self.counts.unknown_class += 1
        tenant = verdict.tenant if said.tenant is None else said.tenant
        max_wait = verdict.max_wait if said.max_wait is None else said.max_wait
        cost = verdict.cost if said.cost is None else said.cost
        return replace(verdict, rank=rank, tenant=tenant, cost=cost, slots=said.slots, max_wait=max_wait)

    def failed(self, scope: Scope) -> None:
        """Your own callable raised: count and log it; the request goes on under the other rules."""
        self.counts.classify_failed += 1
        _log.exception("classify= raised for %s %r", scope.get("method", scope["type"]), scope["path"][:200])

    # ------------------------------------------------------------------ one set of header fields

    def _work_out(self, rule: PathRule, fields: tuple[bytes, ...]) -> Verdict:
        reader = _Fields(fields, self.counts)
        tenant, allowed = self._caller(reader)
        if rule.rank is not None:
            allowed = rule.rank
        asked = self._asked(reader)
        rank = allowed if asked is None else asked if self._trust else max(asked, allowed)
        for name in self._tenant_headers:
            tenant = reader.tenant(name) or tenant
        verdict = Verdict(
            rank,
            rule.tenant or tenant,
            rule.cost,
            rule.slots,
            rule.max_wait,
            retry=reader.value(_RETRY_COUNT) not in (None, b"0"),
            expects_continue=(reader.value(_EXPECT) or b"").lower() == b"100-continue",
        )
        # Not remembered: what made no sense (it is counted every time), what depends on the address as well, and
        # long fields, of which a client could send thousands.
        if reader.sound and self._by_address is None and reader.size <= REMEMBERED_BYTES:
            if len(rule.known) >= REMEMBERED:
                rule.known.clear()
            rule.known[fields] = verdict
        return verdict

    def _caller(self, reader: _Fields) -> tuple[str, int]:
        """Tenant and rank the caller's API key entitles it to."""
        for name in self._key_headers:
            value = reader.value(name)
            if value is None:
                continue
            scheme, _, token = value.partition(b" ")
            key = token.strip() if scheme.lower() == b"bearer" else value
            digest = hashlib.sha256(key).digest()
            found = self._keys.get(digest)
            if found is not None and compare_digest(found[0], digest):
                return found[1], found[2]
            self.counts.unknown_key += 1
            reader.sound = False
        return "", self._anonymous

    def _asked(self, reader: _Fields) -> int | None:
        """Rank the first header that makes sense asks for."""
        for name in self._priority_headers:
            value = reader.value(name)
            if value is None:
                continue
            rank = self._urgency(value) if name == b"priority" else self._named(value)
            if rank is not None:
                return rank
            self.counts.unknown_class += 1
            reader.sound = False
        return None

    def _named(self, value: bytes) -> int | None:
        value = value.strip().lower()
        rank = self._names.get(value)
        if rank is not None or self._numeric is None or not value.isdigit() or len(value) > 9:
            return rank
        number = min(int(value), self._last)
        return number if self._numeric == "low-first" else self._last - number

    def _urgency(self, value: bytes) -> int | None:
        """Rank for RFC 9218's `u`: 0 is the highest, 3 the default class, 4 … 7 the one below it."""
        urgency = rfc9218_urgency(value)
        if urgency is None:
            return None
        if urgency == 0:
            return 0
        if urgency < 3:
            return max(0, self._default - 1)
        return self._default if urgency == 3 else min(self._last, self._default + 1)

    # ------------------------------------------------------------------ configuration

    def _digests(
        self, tenants: Sequence[Tenant], tiers: Mapping[str, str], *, strict: bool
    ) -> dict[bytes, tuple[bytes, str, int]]:
        ranks = {tier: self._ranks.rank_of(name) for tier, name in tiers.items() if strict or self._is_class(name)}
        found: dict[bytes, tuple[bytes, str, int]] = {}
        for tenant in tenants:
            rank = self._anonymous
            if tenant.tier is not None:
                if tenant.tier not in ranks and not self._is_class(tenant.tier):
                    known = sorted({*ranks, *(c.name for c in self._ranks.classes)})
                    raise ValueError(f"tenant {tenant.name!r}: tier is {tenant.tier!r}: it must be one of {known}")
                rank = ranks[tenant.tier] if tenant.tier in ranks else self._ranks.rank_of(tenant.tier)
            for key in tenant.keys:
                digest = bytes.fromhex(key)
                if digest in found:
                    raise ValueError(f"tenants {found[digest][1]!r} and {tenant.name!r} have a key in common")
                found[digest] = (digest, tenant.name, rank)
        return found

    def _is_class(self, name: str) -> bool:
        return name.lower().encode() in self._names

    def _add_path(self, path: str, said: str | Classification) -> None:
        where = path.removesuffix("/*")
        if not path.startswith("/") or "*" in where or (where and normalised(where) != where):
            raise ValueError(f"paths has {path!r}: it must be a plain path such as '/v1/models' or '/v1/batches/*'")
        if isinstance(said, str):
            said = Classification(priority=said)
        rank = None if said.priority is None else self._ranks.rank_of(said.priority)
        rule = PathRule(rank, said.tenant, said.cost, said.slots, said.max_wait)
        (self._exact if where == path else self._below)[where] = rule


class _Fields:
    """Header fields of one request, read with suspicion."""

    def __init__(self, fields: Sequence[bytes], counts: RequestCounts) -> None:
        self._counts = counts
        self._values: dict[bytes, bytes | None] = {}
        self.sound = True
        """False when something made no sense."""
        self.size = 0
        """Bytes of all values."""
        for name, value in zip(fields[::2], fields[1::2], strict=True):
            self.size += len(value)
            if name in self._values:
                self._values[name] = None  # Two answers are none.
                counts.duplicate_header += 1
                self.sound = False
            elif len(value) > MAX_HEADER_BYTES:
                self._values[name] = None
                counts.oversized_header += 1
                self.sound = False
            else:
                self._values[name] = value

    def value(self, name: bytes) -> bytes | None:
        return self._values.get(name)

    def tenant(self, name: bytes) -> str | None:
        value = self._values.get(name)
        if value is None:
            return None
        try:
            tenant = value.strip().decode()
        except UnicodeDecodeError:
            tenant = ""
        if 0 < len(value) <= MAX_TENANT_BYTES and tenant.isprintable() and tenant:
            return tenant
        self._counts.bad_tenant += 1
        self.sound = False
        return None


class Addresses:
    """Tells anonymous callers apart by address. Addresses count only if a trusted proxy, or the socket, says so."""

    def __init__(self, trusted_proxies: Sequence[str] = ()) -> None:
        self._trusted = [ipaddress.ip_network(network) for network in trusted_proxies]
        self._known: dict[tuple[str, bytes], str] = {}

    def tenant(self, client: Sequence[Any] | None, headers: Headers) -> str:
        """A tenant id for whoever is at the other end: `addr:192.0.2.7`, or `addr:2001:db8::/64`."""
        peer = str(client[0]) if client else ""
        # Fields of one name are one list; a client could otherwise hide behind a second field.
        forwarded = b",".join(value for name, value in headers if name == _FORWARDED_FOR) if self._trusted else b""
        known = self._known.get((peer, forwarded))
        if known is None:
            known = self._work_out(peer, forwarded[-MAX_HEADER_BYTES:])
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            if len(forwarded) <= MAX_HEADER_BYTES:
                self._known[peer, forwarded] = known
        return known

    def _work_out(self, peer: str, forwarded: bytes) -> str:
        address = _address(peer)
        if address is None:
            return ""  # A Unix socket or an unknown peer: nobody in particular.
        for hop in reversed(forwarded.split(b",")):
            if not self._is_trusted(address):
                break
            nearer = _address(hop.decode("latin-1").strip())
            if nearer is None:
                break
            address = nearer
        if address.version == 6:
            return f"addr:{ipaddress.ip_network((address, 64), strict=False)}"
        return f"addr:{address}"

    def _is_trusted(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in network for network in self._trusted)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def rfc9218_urgency(value: bytes) -> int | None:
    """The `u` of a `Priority` header, 0 … 7; 3 when it has none; None when it is no urgency.

    Only as much of structured fields is read as the header needs: a list of `key[=value][;parameters]`, of which
    the last `u` counts.
    """
    urgency: int | None = 3
    for item in value.split(b","):
        name, _, given = item.partition(b";")[0].strip().partition(b"=")
        if name == b"u":
            urgency = int(given) if len(given) == 1 and given in b"01234567" else None
    return urgency


def route_path(scope: Scope) -> str:
    """The path as the app's own routes see it: without the `root_path` a server or a mount has put in front."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


def normalised(path: str) -> str:
    """*path* with empty, `.` and `..` segments resolved, so that no spelling of a path escapes its rule."""
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    return "/" + "/".join(segments)


def is_plain(path: str) -> bool:
    """Whether *path* is spelt the one way there is, but for a slash behind it, where mounted apps answer."""
    return normalised(path) in (path, path.removesuffix("/"))


def _lowered(*names: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(name.lower().encode("latin-1") for group in names for name in group)
