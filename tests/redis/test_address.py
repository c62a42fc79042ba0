"""Addresses: what a URL says, and what is said of one that is wrong. No password is ever shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from admission.backends.redis.address import Address, Kind, check_address, masked


def test_plain_url_names_host_port_and_database() -> None:
    """The port and the database have defaults."""
    address = Address.parse("redis://cache:7000/3")
    assert (address.kind, address.hosts, address.db, address.tls) == (Kind.SERVER, (("cache", 7000),), 3, False)
    assert Address.parse("valkey://cache").hosts == (("cache", 6379),)
    assert Address.parse("redis://cache/").db == 0
    assert Address.parse("redis://cache?db=4").db == 4
    assert Address.parse("redis://[::1]:7000").hosts == (("::1", 7000),)


def test_login_is_decoded() -> None:
    """Whatever is not letters and digits is percent-encoded."""
    address = Address.parse("redis://admission:p%40ss%2F%3F@cache")
    assert (address.username, address.password) == ("admission", "p@ss/?")
    assert Address.parse("redis://:secret@cache").username is None
    assert Address.parse("redis://cache?username=u&password=p").password == "p"


def test_schemes_with_s_speak_tls(tmp_path: Path) -> None:
    """Their options are passed on, and files must exist."""
    authority = tmp_path / "ca.pem"
    authority.touch()
    address = Address.parse(f"valkeys://cache?ssl_ca_certs={authority}&ssl_check_hostname=no")
    assert address.tls
    assert dict(address.options) == {"ssl_ca_certs": str(authority), "ssl_check_hostname": False}
    assert Address.parse("rediss+cluster://a,b:7000").tls


def test_socket_is_a_path() -> None:
    """A login stands before it, the database behind it."""
    address = Address.parse("unix://u:p@/run/redis.sock?db=2")
    assert (address.kind, address.path, address.db) == (Kind.SOCKET, "/run/redis.sock", 2)
    assert (address.username, address.password) == ("u", "p")


def test_sentinels_are_listed_before_their_service() -> None:
    """They may have a login of their own."""
    address = Address.parse("redis+sentinel://u:p@a:1,b/pool/2?sentinel_password=other")
    assert address.kind is Kind.SENTINEL
    assert address.hosts == (("a", 1), ("b", 26379))
    assert (address.service, address.db) == ("pool", 2)
    assert (address.password, address.sentinel_password) == ("p", "other")


def test_cluster_lists_nodes() -> None:
    """One is enough."""
    address = Address.parse("redis+cluster://a:1,b:2/0")
    assert (address.kind, address.hosts) == (Kind.CLUSTER, (("a", 1), ("b", 2)))


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("cache:6379", "has no scheme: it must be one of redis, rediss"),
        ("http://cache", "has the scheme 'http'"),
        ("redis://", "names no host"),
        ("redis://:secret@", "names no host"),
        ("redis://cache:99999", "has the port '99999': it must be 1 to 65535"),
        ("redis://cache:", "has the port"),
        ("redis://[::1", "an IPv6 address in '[]'"),
        ("redis://fe80::1", "an IPv6 address in '[]'"),
        ("redis://a,b", "names several hosts"),
        ("redis://cache/pool", "has the database 'pool': it must be a number"),
        ("redis://cache/1?db=2", "names its database twice"),
        ("redis://user@cache", "names a user without a password"),
        ("redis://u:se/cret@cache", "'/' and '?' in a user or password are written"),
        ("redis://cache?retries=3", "has the option 'retries': it must be one of db, username"),
        ("redis://cache?db=1&db=2", "has the option 'db' twice"),
        ("redis://cache?ssl_ca_certs=/ca.pem", "needs TLS: write 'rediss://'"),
        ("redis+cluster://cache?ssl_ca_certs=/ca.pem", "needs TLS: write 'rediss+cluster://'"),
        ("rediss://cache?ssl_ca_certs=/no/such.pem", "it must be a file that exists"),
        ("rediss://cache?ssl_cert_reqs=maybe", "it must be none, optional or required"),
        ("rediss://cache?ssl_check_hostname=maybe", "it must be yes or no"),
        ("unix://run/redis.sock", "with three slashes"),
        ("redis+sentinel://a", "names no service"),
        ("redis+cluster://a/3", "a cluster has only 0"),
    ],
)
def test_wrong_url_is_told_what_would_be_right(url: str, complaint: str) -> None:
    """The message names the URL, the part and what it must be."""
    with pytest.raises(ValueError, match="the Redis URL") as refused:
        check_address(url)
    assert complaint in str(refused.value)
    assert "secret" not in str(refused.value)


def test_address_shows_no_password() -> None:
    """Neither as text nor as repr."""
    address = Address.parse("redis+sentinel://u:hunter2@a/pool?sentinel_password=hunter3")
    assert str(address) == "redis+sentinel://u:***@a/pool?sentinel_password=***"
    assert "hunter" not in repr(address)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:{}@cache",
        "redis://:{}@cache:6379/0",
        "u:{}@cache",
        "redis://cache?password={}",
        "redis://cache:6379/0?db=1&password={}",
        "redis+sentinel://a/pool?sentinel_password={}",
        "unix://u:{}@/run/redis.sock",
        "nonsense://u:{}@cache",
    ],
)
@settings(max_examples=200)
@given(secret=st.text(min_size=1, max_size=12).map(lambda text: f"Qz{text}zQ"))
@example(secret="Qz://zQ")
def test_no_complaint_shows_a_password(url: str, secret: str) -> None:
    """However little it is encoded, and however wrong the URL is besides."""
    text = url.format(secret)
    assert "Qz" not in masked(text)
    assert "zQ" not in masked(text)
    try:
        shown = repr(Address.parse(text))
    except ValueError as error:
        shown = str(error)
    assert "Qz" not in shown
    assert "zQ" not in shown


@pytest.mark.parametrize(
    "url", ["redis://u:Qz/1zQ", "redis://u:Qz?zQ", "redis://u:Qz\nzQ", "u:Qz:zQ", "redis://:Qz,zQ"]
)
def test_password_of_a_forgotten_host_is_not_shown(url: str) -> None:
    """What stands where a port belongs may be one."""
    with pytest.raises(ValueError, match="the Redis URL") as refused:
        check_address(url)
    assert "Qz" not in str(refused.value)
    assert "zQ" not in str(refused.value)


def test_missing_package_is_said_with_its_cure() -> None:
    """The rest of `admission` does not import it; who asks for a link is told what to install."""
    program = (
        "import sys\n"
        "sys.modules['redis'] = sys.modules['hiredis'] = None\n"
        "import admission\n"
        "import admission.backends.redis.address\n"
        "try:\n"
        "    import admission.backends.redis.link\n"
        "except admission.AdmissionError as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert 'pip install "admission[redis]"' in said.stdout
