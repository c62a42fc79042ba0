"""What the ledger takes for a broken promise, record by record."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.journal import Journal, Kind, Reader, Record
from tests.chaos.ledger import NEVER, Ledger

LEASE = 10e-9
"""Ten of the ledger's units."""


def begin(at: int, ticket: str, server: int = 0, *, alone: bool = False) -> Record:
    """Its work begins."""
    return Record(at, server, Kind.BEGIN, alone, ticket)


def end(at: int, ticket: str, server: int = 0) -> Record:
    """Its work ends."""
    return Record(at, server, Kind.END, False, ticket)


def cut_off(at: int, server: int = 0) -> Record:
    """It cannot reach the pool."""
    return Record(at, server, Kind.CUT_OFF, False, "")


def rejoined(at: int, server: int = 0) -> Record:
    """It can again."""
    return Record(at, server, Kind.REJOINED, False, "")


def test_one_more_than_the_limit_is_wrong() -> None:
    """Whichever processes they run in."""
    ledger = Ledger(2, 1, LEASE)
    ledger.read([begin(1, "a"), begin(2, "b", 1), end(3, "a"), begin(4, "c", 2)])
    assert not ledger.wrong
    ledger.read([begin(5, "d")])
    assert ledger.wrong == ["3 run, 0 of them excused: the limit is 2"]


def test_what_a_killed_process_ran_ends_with_it() -> None:
    """Its work is over, and nobody else's."""
    ledger = Ledger(2, 1, LEASE)
    ledger.read([begin(1, "a"), begin(2, "b", 1), Record(3, 0, Kind.DEAD, False, ""), begin(4, "c", 1)])
    assert not ledger.wrong
    assert sorted(ledger.running) == ["b", "c"]


def test_a_lost_permit_is_excused_from_when_it_was_lost_until_the_lease_is_over() -> None:
    """Neither earlier nor later."""
    ledger = Ledger(1, 1, LEASE)
    ledger.excused_until = NEVER
    ledger.lose(["a"], 5)
    ledger.read([begin(1, "a"), begin(4, "b")])
    assert len(ledger.wrong) == 1
    ledger.read([end(6, "b"), begin(7, "c")])
    assert len(ledger.wrong) == 1
    ledger.excused_until = 10
    ledger.read([end(11, "c"), begin(12, "d")])
    assert len(ledger.wrong) == 2


def test_who_goes_alone_has_a_share_that_counts_all_it_runs() -> None:
    """One it was granted before the outage, one it lets in by itself: a third is too many."""
    ledger = Ledger(4, 2, LEASE)
    ledger.read([begin(1, "a"), cut_off(2), cut_off(2, 1), begin(2, "b", alone=True), begin(3, "c", 1, alone=True)])
    assert not ledger.wrong
    ledger.read([begin(4, "d", alone=True)])
    assert ledger.wrong == ["server 0 runs 3 alone: its share is 2"]


def test_who_goes_alone_is_excused_until_a_lease_after_it_is_back() -> None:
    """Of each process by itself, whether or not a fault was meant."""
    ledger = Ledger(2, 1, LEASE)
    ledger.read([begin(1, "a"), begin(1, "b"), cut_off(2, 1), begin(3, "c", 1, alone=True)])
    ledger.read([rejoined(4, 1), end(5, "a"), begin(13, "d")])
    assert not ledger.wrong
    assert ledger.unprovoked == 1
    ledger.read([end(14, "d"), begin(14, "e")])
    assert ledger.wrong == ["3 run, 0 of them excused: the limit is 2"]


def test_going_alone_while_the_pool_can_be_reached_is_wrong() -> None:
    """Nobody has cut it off, or not lately."""
    ledger = Ledger(2, 1, LEASE)
    ledger.read([begin(1, "a", alone=True)])
    assert ledger.wrong == ["server 0 let one in alone, and was not cut off"]
    ledger.read([end(2, "a"), cut_off(3), rejoined(4), begin(14, "b", alone=True)])
    assert len(ledger.wrong) == 2


def test_a_ticket_that_begins_twice_is_wrong() -> None:
    """Two permits of one ticket."""
    ledger = Ledger(4, 2, LEASE)
    ledger.read([begin(1, "a"), begin(2, "a", 1)])
    assert ledger.wrong == ["ticket a began to run twice"]


def test_a_reader_follows_what_several_processes_append(tmp_path: Path) -> None:
    """In the order it was written."""
    one, other = Journal(tmp_path / "journal"), Journal(tmp_path / "journal")
    reader = Reader(tmp_path / "journal")
    one.write(0, Kind.BEGIN, "a" * 16 + ":1")
    other.write(1, Kind.BEGIN, "b", alone=True)
    assert [(r.server, r.ticket, r.alone) for r in reader.news()] == [(0, "a" * 16 + ":1", False), (1, "b", True)]
    assert not list(reader.news())
    one.write(0, Kind.END, "c")
    assert [(r.kind, r.ticket) for r in reader.news()] == [(Kind.END, "c")]
    for file in (one, other, reader):
        file.close()
