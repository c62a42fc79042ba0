"""Where a Redis is and how to log in: one URL, read with care.

    redis:// rediss:// valkey:// valkeys://     [user:password@]host[:6379][/db]
    unix://                                     [user:password@]/path/to/socket[?db=0]
    redis+sentinel:// rediss+sentinel://        [user:password@]host[:26379],host…/service[/db]
    redis+cluster:// rediss+cluster://          [user:password@]host[:6379],host…

The `s` stands for TLS. What is not letters and digits in a user or a password is percent-encoded.

Passwords are in no message, no repr and no log: every text made here writes `***` in their place, also where the URL is
too wrong to be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn
from urllib.parse import parse_qsl, unquote

__all__ = ["Address", "Kind", "check_address", "masked"]


class Kind(Enum):
    """What stands behind an address."""

    SERVER = "server"
    SOCKET = "socket"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Address:
    """A URL that was read. Its `str` is that URL with `***` for every password.

    Attributes:
        hosts: Name or number, and port. One of a server; the Sentinels; the nodes of a cluster known at first.
        path: The socket's.
        service: What the Sentinels call the primary.
        sentinel_username, sentinel_password: For the Sentinels themselves, which have users of their own.
        options: What is passed on to the client: `ssl_…` and `client_name`.
    """

    text: str
    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    tls: bool = False
    options: Mapping[str, str | bool] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Address({self.text!r})"

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read *url*.

        Raises:
            ValueError: It is none; the message says what is wrong with which part, and what would be right.
        """
        return _Reading(url).address()


def check_address(url: str) -> None:
    """Do nothing if *url* can be read.

    Raises:
        ValueError: As `Address.parse`.
    """
    Address.parse(url)


def masked(url: str) -> str:
    """*url* with `***` for every password that may be in it, whatever else is wrong with it."""
    text = _QUERY_PASSWORD.sub(r"\1***", url)
    # Up to the *last* @: a password with an unescaped "/" or "@" must not be cut in two and half of it shown.
    login, at, rest = text.rpartition("@")
    if not at:
        return _NO_PORT.sub(r"\1:***", text)
    scheme, login = _scheme(login)
    user, colon, _ = login.partition(":")
    return f"{scheme}{'://' if scheme else ''}{user}{':***' if colon else ''}@{rest}"


def _scheme(url: str) -> tuple[str, str]:
    """The scheme of *url*, empty if it has none, and the rest. A "://" further on may be in a password."""
    found = _SCHEME.match(url)
    return (found[1], url[found.end() :]) if found else ("", url)


_SCHEME = re.compile(r"([^:/?@]+)://")

_QUERY_PASSWORD = re.compile(r"(password=).*", re.IGNORECASE | re.DOTALL)
"""To the end: an unescaped '&' in the password is no reason to show what follows it."""

_NO_PORT = re.compile(r"^((?:[^:/]+://)?[^:/?,\[]*):(?!//)(?!\d*(?:[/?,]|$)).*", re.DOTALL)
"""Where a port should stand, something else: perhaps the password of a URL without a host."""

_SCHEMES: Mapping[str, tuple[Kind, bool]] = MappingProxyType(
    {
        "redis": (Kind.SERVER, False),
        "rediss": (Kind.SERVER, True),
        "valkey": (Kind.SERVER, False),
        "valkeys": (Kind.SERVER, True),
        "unix": (Kind.SOCKET, False),
        **{
            f"{name}{secure}+{kind.value}": (kind, bool(secure))
            for kind in (Kind.SENTINEL, Kind.CLUSTER)
            for name in ("redis", "valkey")
            for secure in ("", "s")
        },
    }
)
_PORTS = {Kind.SERVER: 6379, Kind.SENTINEL: 26379, Kind.CLUSTER: 6379}
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+)(?::(?P<port>[^:]*))?")
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_LOGIN = ("username", "password")
_SENTINEL_LOGIN = ("sentinel_username", "sentinel_password")
_TLS = (*_FILES, "ssl_cert_reqs", "ssl_check_hostname", "ssl_ciphers")
_YES = ("1", "true", "yes", "on")
_NO = ("0", "false", "no", "off")


class _Reading:
    """One URL on its way to an address: every complaint names the URL, masked."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._text = masked(url)

    def address(self) -> Address:
        scheme, rest = _scheme(self._url)
        if scheme.lower() not in _SCHEMES:
            shown = f"the scheme {scheme!r}" if scheme else "no scheme"
            self._fail(f"has {shown}: it must be one of {', '.join(_SCHEMES)}, and then '://'")
        kind, tls = _SCHEMES[scheme.lower()]
        rest, _, query = rest.partition("?")
        authority, slash, path = rest.partition("/")
        login, at, hosts = authority.rpartition("@")
        if "@" in path or "@" in query:
            self._fail("has an '@' too far right: '/' and '?' in a user or password are written %2F and %3F")
        # First: complaints about what follows quote what may be the rest of a password in a URL without a host.
        servers = () if kind is Kind.SOCKET else self._hosts(hosts, kind)
        options = self._options(query, kind, tls)
        username, password = self._login(login if at else "", options)
        sentinel_username, sentinel_password = (options.pop(name, None) for name in _SENTINEL_LOGIN)
        service, db = self._path(path, kind, options)
        return Address(
            text=self._text,
            kind=kind,
            hosts=servers,
            path=self._socket(hosts, slash + path) if kind is Kind.SOCKET else "",
            service=service,
            db=db,
            username=username,
            password=password,
            sentinel_username=sentinel_username,
            sentinel_password=sentinel_password,
            tls=tls,
            options=MappingProxyType({name: self._value(name, value) for name, value in options.items()}),
        )

    def _login(self, login: str, options: dict[str, str]) -> tuple[str | None, str | None]:
        """The user and the password, from before the @ or from the query."""
        user, _, password = login.partition(":")
        given = [unquote(text) or options.get(name) for text, name in zip((user, password), _LOGIN, strict=True)]
        for name in _LOGIN:
            options.pop(name, None)
        if given[0] and not given[1]:
            self._fail("names a user without a password: write 'user:password@', or ':password@' for the default user")
        return given[0] or None, given[1] or None

    def _hosts(self, text: str, kind: Kind) -> tuple[tuple[str, int], ...]:
        hosts = tuple(self._host(part, kind) for part in text.split(",")) if text else ()
        if not hosts:
            self._fail("names no host: write 'host:port' after '://'")
        if len(hosts) > 1 and kind is Kind.SERVER:
            self._fail("names several hosts: that takes a scheme with '+sentinel' or '+cluster'")
        return hosts

    def _host(self, text: str, kind: Kind) -> tuple[str, int]:
        match = _HOST.fullmatch(text)
        if match is None:
            shown = repr(text) if text.count(":") == 0 else "'***'"
            self._fail(f"has the host {shown}: it must be a name, an IPv4 address or an IPv6 address in '[]'")
        port = match["port"]
        if port is None:
            return match["host"].strip("[]"), _PORTS[kind]
        if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            # Not a number, it may be a password: a URL without its host.
            shown = repr(port) if port.isdigit() else "'***'"
            self._fail(f"has the port {shown}: it must be 1 to 65535")
        return match["host"].strip("[]"), int(port)

    def _socket(self, host: str, path: str) -> str:
        path = unquote(path)
        if host or path in ("", "/"):
            self._fail("names no socket: write 'unix:///path/to/socket', with three slashes")
        return path

    def _path(self, path: str, kind: Kind, options: dict[str, str]) -> tuple[str, int]:
        """The Sentinels' service and the number of the database."""
        service, db = "", options.pop("db", "")
        if kind is Kind.SENTINEL:
            service, _, path = path.partition("/")
            service = unquote(service)
            if not service:
                self._fail("names no service: write what the Sentinels call the primary after the hosts, '/name'")
        if kind is not Kind.SOCKET and path.rstrip("/"):
            if db:
                self._fail("names its database twice: in the path and as 'db='")
            db = path.rstrip("/")
        if db and not (db.isascii() and db.isdigit()):
            self._fail(f"has the database {db!r}: it must be a number, 0 or more")
        if kind is Kind.CLUSTER and int(db or 0) != 0:
            self._fail(f"has the database {db!r}: a cluster has only 0")
        return service, int(db or 0)

    def _options(self, query: str, kind: Kind, tls: bool) -> dict[str, str]:
        """What stands behind the '?', by name."""
        allowed = ["db", *_LOGIN, "client_name", *(_TLS if tls else ())]
        if kind is Kind.SENTINEL:
            allowed += _SENTINEL_LOGIN
        options: dict[str, str] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name in _TLS and not tls:
                self._fail(f"has the option {name!r}, which needs TLS: write {self._secure()!r}")
            if name not in allowed:
                shown = "'***'" if "password" in query else repr(name)  # It may be the rest of one, behind an '&'.
                self._fail(f"has the option {shown}: it must be one of {', '.join(allowed)}")
            if name in options:
                self._fail(f"has the option {name!r} twice")
            options[name] = value
        return options

    def _value(self, name: str, value: str) -> str | bool:
        if name in _FILES and not Path(value).is_file():
            self._fail(f"has {name}={value!r}: it must be a file that exists")
        if name == "ssl_cert_reqs" and value not in ("none", "optional", "required"):
            self._fail(f"has {name}={value!r}: it must be none, optional or required")
        if name == "ssl_check_hostname":
            if value.lower() not in (*_YES, *_NO):
                self._fail(f"has {name}={value!r}: it must be yes or no")
            return value.lower() in _YES
        return value

    def _secure(self) -> str:
        name, plus, kind = self._url.partition("://")[0].partition("+")
        return "rediss://" if name == "unix" else f"{name}s{plus}{kind}://"

    def _fail(self, complaint: str) -> NoReturn:
        raise ValueError(f"the Redis URL {self._text!r} {complaint}")
