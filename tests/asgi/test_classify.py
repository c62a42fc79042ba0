"""Who asks, and which class that makes it."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission.asgi.classify import (
    MAX_HEADER_BYTES,
    REMEMBERED,
    Classification,
    Classifier,
    Tenant,
    normalised,
    rfc9218_urgency,
    route_path,
)
from admission.asgi.verdict import Verdict
from admission.controller import AdmissionController
from admission.types import PriorityClass

CRITICAL, HIGH, NORMAL, LOW = range(4)


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


TENANTS = (
    Tenant(name="acme", tier="enterprise", keys=[sha256("sk-acme")]),
    Tenant(name="bolt", tier="pro", keys=[sha256("sk-bolt")]),
    Tenant(name="cato", tier="free", keys=[sha256("sk-cato"), sha256("sk-cato-2")]),
    Tenant(name="dodo", keys=[sha256("sk-dodo")]),
)


def classifier(**options: object) -> Classifier:
    return Classifier(AdmissionController(), **options)  # type: ignore[arg-type]


def ask(of: Classifier, *fields: tuple[str, str], path: str = "/", client: object = ("192.0.2.1", 1)) -> Verdict:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    relevant = tuple(part for field in headers if field[0] in of.relevant for part in field)
    return of.verdict(of.path_rule(path), relevant, {"headers": headers, "client": client, "path": path})


def test_a_stranger_has_the_default_class() -> None:
    """Without a header or key the class is `normal`, the tenant nobody."""
    assert ask(classifier()) == Verdict(NORMAL, "")


@pytest.mark.parametrize(("asked", "rank"), [("critical", NORMAL), ("high", NORMAL), ("normal", NORMAL), ("low", LOW)])
def test_an_untrusted_header_lowers_and_never_raises(asked: str, rank: int) -> None:
    """A stranger may call itself low, not critical."""
    assert ask(classifier(), ("x-priority", asked)).rank == rank


@pytest.mark.parametrize(("asked", "rank"), [("critical", CRITICAL), ("HIGH", HIGH), (" low ", LOW)])
def test_a_trusted_header_raises_too(asked: str, rank: int) -> None:
    """Behind a gateway the header is the gateway's word."""
    assert ask(classifier(trust_headers=True), ("x-priority", asked)).rank == rank


@pytest.mark.parametrize(
    ("urgency", "rank"),
    [("u=0", 0), ("u=1", 1), ("u=2, i", 1), ("u=3", 2), ("i", 2), ("u=4", 3), ("u=7;x=1", 3), ("u=1, u=5", 3)],
)
def test_rfc_9218_urgency_becomes_a_class(urgency: str, rank: int) -> None:
    """0 is critical, 1 and 2 high, 3 (its default) normal, the rest low; the last `u` counts."""
    assert ask(classifier(trust_headers=True), ("priority", urgency)).rank == rank


@pytest.mark.parametrize("value", [b"u=8", b"u=-1", b"u=", b"u=1.0", b'u="1"', b"u=12", b"u"])
def test_a_malformed_urgency_is_none(value: bytes) -> None:
    """Anything but one digit from 0 to 7 says nothing."""
    assert rfc9218_urgency(value) is None


@given(st.binary(max_size=64))
def test_no_priority_header_makes_the_parser_fail(value: bytes) -> None:
    """Any bytes give an urgency in range, or None."""
    assert rfc9218_urgency(value) in {None, 0, 1, 2, 3, 4, 5, 6, 7}


@pytest.mark.parametrize(
    ("key", "tenant", "rank"),
    [("sk-acme", "acme", CRITICAL), ("sk-bolt", "bolt", HIGH), ("sk-cato-2", "cato", LOW), ("sk-dodo", "dodo", NORMAL)],
)
def test_an_api_key_names_tenant_and_tier(key: str, tenant: str, rank: int) -> None:
    """Key → tenant → tier → class, by `Authorization: Bearer` or `X-API-Key`."""
    by_key = classifier(tenants=TENANTS)
    assert ask(by_key, ("authorization", f"Bearer {key}")) == Verdict(rank, tenant)
    assert ask(by_key, ("x-api-key", key)) == Verdict(rank, tenant)


def test_a_tier_bounds_what_a_header_may_ask() -> None:
    """An enterprise key may ask for high, a free key may not."""
    by_key = classifier(tenants=TENANTS)
    assert ask(by_key, ("x-api-key", "sk-acme"), ("x-priority", "high")).rank == HIGH
    assert ask(by_key, ("x-api-key", "sk-cato"), ("x-priority", "critical")).rank == LOW


def test_an_unknown_key_is_counted_and_stays_anonymous() -> None:
    """A made-up key gives no tenant, however often it comes."""
    by_key = classifier(tenants=TENANTS)
    for _ in range(3):
        assert ask(by_key, ("x-api-key", "sk-made-up")) == Verdict(NORMAL, "")
    assert by_key.counts.unknown_key == 3
    assert not by_key.anywhere.known


def test_an_unknown_class_falls_back_and_is_counted_every_time() -> None:
    """A typo in a header costs nobody the request."""
    it = classifier(tenants=TENANTS)
    for _ in range(2):
        assert ask(it, ("x-priority", "urgent")).rank == NORMAL
    assert ask(it, ("x-api-key", "sk-cato"), ("x-priority", "urgent")).rank == LOW
    assert it.counts.unknown_class == 3


def test_of_a_header_sent_twice_neither_counts() -> None:
    """Two answers are none: a client cannot smuggle one past a proxy that checks the other."""
    it = classifier(trust_headers=True, tenants=TENANTS)
    assert ask(it, ("x-priority", "low"), ("x-priority", "critical")).rank == NORMAL
    assert ask(it, ("x-api-key", "sk-acme"), ("x-api-key", "sk-bolt")) == Verdict(NORMAL, "")
    assert it.counts.duplicate_header == 2


def test_an_oversized_header_is_not_looked_at() -> None:
    """Only so many bytes are parsed or hashed."""
    it = classifier(trust_headers=True)
    assert ask(it, ("x-priority", "low" + " " * MAX_HEADER_BYTES)).rank == NORMAL
    assert it.counts.oversized_header == 1


def test_a_tenant_header_counts_only_when_trusted() -> None:
    """A client that may choose its tenant would choose a new one for every request."""
    assert ask(classifier(), ("x-tenant-id", "mallory")).tenant == ""
    trusting = classifier(trust_headers=True)
    assert ask(trusting, ("x-tenant-id", "acme")).tenant == "acme"
    assert ask(trusting, ("x-llm-d-inference-fairness-id", "acme")).tenant == "acme"


@pytest.mark.parametrize("tenant", ["x" * 129, "a\nb", "\xff\xfe", ""])
def test_a_bad_tenant_id_is_refused_and_counted(tenant: str) -> None:
    """Tenant ids are at most 128 bytes and printable: they are keys, labels and log lines."""
    trusting = classifier(trust_headers=True)
    assert ask(trusting, ("x-tenant-id", tenant)).tenant == ""
    assert trusting.counts.bad_tenant == 1


def test_the_direction_of_numbers_is_said_explicitly() -> None:
    """vLLM counts low-first, SGLang high-first; without saying which, a number is no class."""
    silent = classifier(trust_headers=True)
    assert ask(silent, ("x-priority", "0")).rank == NORMAL
    assert silent.counts.unknown_class == 1
    low_first = classifier(trust_headers=True, numeric_priorities="low-first")
    assert [ask(low_first, ("x-priority", n)).rank for n in ("0", "3", "99")] == [CRITICAL, LOW, LOW]
    high_first = classifier(trust_headers=True, numeric_priorities="high-first")
    assert [ask(high_first, ("x-smg-priority", n)).rank for n in ("0", "3", "99")] == [LOW, CRITICAL, CRITICAL]


def test_a_path_rule_replaces_the_tier() -> None:
    """The server's own word on a path stands above the tier; the longest rule wins."""
    it = classifier(
        tenants=TENANTS,
        paths={"/v1/batches/*": "low", "/v1/batches/now": "high", "/big": Classification(cost=40, slots=2)},
    )
    assert ask(it, ("x-api-key", "sk-acme"), path="/v1/batches/7").rank == LOW
    assert ask(it, path="/v1/batches").rank == LOW
    assert ask(it, path="/v1/batches/now").rank == HIGH
    assert ask(it, path="/v1/batchesque").rank == NORMAL
    assert ask(it, path="/big") == Verdict(NORMAL, "", cost=40, slots=2)


def test_a_client_retry_is_noticed() -> None:
    """The openai client says how often it has tried."""
    assert not ask(classifier(), ("x-stainless-retry-count", "0")).retry
    assert ask(classifier(), ("x-stainless-retry-count", "2")).retry


def test_forwarded_addresses_count_only_from_trusted_networks() -> None:
    """The rightmost address outside the trusted networks is the client's; anything left of it, it made up."""
    it = classifier(tenant_by_address=True, trusted_proxies=["10.0.0.0/8"])
    forged = ("x-forwarded-for", "203.0.113.9, 198.51.100.7, 10.1.1.1")
    assert ask(it, forged, client=("10.0.0.1", 1)).tenant == "addr:198.51.100.7"
    assert ask(it, forged, client=("192.0.2.1", 1)).tenant == "addr:192.0.2.1"
    assert ask(it, ("x-forwarded-for", "nonsense"), client=("10.0.0.1", 1)).tenant == "addr:10.0.0.1"
    two = (("x-forwarded-for", "198.51.100.7"), ("x-forwarded-for", "198.51.100.8"))
    assert ask(it, *two, client=("10.0.0.1", 1)).tenant == "addr:198.51.100.8"


def test_ipv6_neighbours_are_one_tenant() -> None:
    """One host has a whole /64 to choose addresses from."""
    it = classifier(tenant_by_address=True)
    assert (
        ask(it, client=("2001:db8::1", 1)).tenant
        == ask(it, client=("2001:db8::ffff", 1)).tenant
        == "addr:2001:db8::/64"
    )
    assert ask(it, client=None).tenant == ""


def test_what_is_remembered_is_bounded() -> None:
    """A client that varies what it sends cannot make the memory grow."""
    it = classifier(trust_headers=True, tenant_by_address=False)
    for number in range(REMEMBERED + 10):
        ask(it, ("x-tenant-id", f"t{number}"))
    assert len(it.anywhere.known) <= REMEMBERED
    ask(it, ("priority", "i" + " " * 600))
    assert all(sum(map(len, fields)) < 1024 for fields in it.anywhere.known)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tenants": [Tenant(name="a", tier="gold")]}, "tier is 'gold'"),
        ({"tenants": [Tenant(name="a", keys=[sha256("k")]), Tenant(name="b", keys=[sha256("k")])]}, "in common"),
        ({"tiers": {"gold": "golden"}}, "golden"),
        ({"paths": {"v1": "low"}}, "'v1'"),
        ({"paths": {"/v1/../x": "low"}}, "plain path"),
        ({"paths": {"/v1": "lowest"}}, "lowest"),
        ({"trusted_proxies": ["10.0.0.1/8"], "tenant_by_address": True}, "10.0.0.1/8"),
    ],
)
def test_a_wrong_rule_is_refused_by_name(options: dict[str, object], message: str) -> None:
    """Mistakes come out at start, with the value in the message."""
    with pytest.raises(ValueError, match=message):
        classifier(**options)


def test_a_plain_key_is_refused_and_not_shown() -> None:
    """Only SHA-256 belongs in a configuration, and what looks like a plain key is not repeated in the error."""
    with pytest.raises(ValueError, match="64 hex digits") as raised:
        Tenant(name="acme", keys=["sk-very-secret"])
    assert "secret" not in str(raised.value)
    assert "keys" not in repr(Tenant(name="acme", keys=[sha256("k")]))


def test_classes_of_other_names_are_understood() -> None:
    """Urgency maps around the default class, whatever the classes are called."""
    pool = AdmissionController(classes=[PriorityClass(name="chat"), PriorityClass(name="batch")])
    it = Classifier(pool, trust_headers=True)
    assert ask(it, ("x-priority", "BATCH")).rank == 1
    assert ask(it, ("priority", "u=0")).rank == 0
    assert ask(it, ("priority", "u=7")).rank == 1


@pytest.mark.parametrize(
    ("path", "root", "seen"),
    [
        ("/api/health", "/api", "/health"),
        ("/health", "/api", "/health"),
        ("/apihealth", "/api", "/apihealth"),
        ("/x", "", "/x"),
    ],
)
def test_the_path_is_the_one_the_routes_see(path: str, root: str, seen: str) -> None:
    """`root_path` is taken off at a slash only."""
    assert route_path({"path": path, "root_path": root}) == seen


@given(st.text(alphabet="/.ab", max_size=12))
def test_normalising_twice_changes_nothing_more(path: str) -> None:
    """A normalised path has no empty or dot segments left."""
    once = normalised("/" + path)
    assert normalised(once) == once
    assert "//" not in once
    assert not {".", ".."} & set(once.split("/"))
