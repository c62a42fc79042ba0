"""What ran when, over all processes: one append-only file, whose order is the order of events.

A process writes a record of fixed length with one `write` on a descriptor opened for appending, which the kernel does
in one piece. It writes BEGIN after it was granted a permit and END before it hands the permit back, so a reader never
counts more than there was; what a killed process wrote is there, since the kernel has it.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

_RECORD = struct.Struct("<qiBB50s")


class Kind(IntEnum):
    """What a record says."""

    BEGIN = 1
    """A permit's work has begun."""
    END = 2
    """It has ended."""
    DEAD = 3
    """The process is gone, and all it ran with it. Written by whoever killed it."""
    CUT_OFF = 4
    """The process cannot reach the pool, and goes by itself from now on."""
    REJOINED = 5
    """It can again, and is about to tell the pool what it runs."""


class Record(NamedTuple):
    """One line of the journal."""

    at: int
    """Nanoseconds of the machine's monotonic clock, the same in every process."""
    server: int
    kind: Kind
    alone: bool
    """BEGIN: the process let it in by itself, during an outage."""
    ticket: str


class Journal:
    """The writing side."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, server: int, kind: Kind, ticket: str = "", *, alone: bool = False) -> None:
        """Append one record; it is there for every reader when this returns."""
        os.write(self._file, _RECORD.pack(time.monotonic_ns(), server, kind, alone, ticket.encode()))

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


class Reader:
    """The reading side. Follows the file as it grows."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
        self._rest = b""

    def news(self) -> Iterator[Record]:
        """What was written since the last time."""
        while data := os.read(self._file, 1 << 16):
            data = self._rest + data
            whole = len(data) - len(data) % _RECORD.size
            self._rest = data[whole:]
            for at, server, kind, alone, ticket in _RECORD.iter_unpack(data[:whole]):
                yield Record(at, server, Kind(kind), bool(alone), ticket.rstrip(b"\0").decode())

    def close(self) -> None:
        """Read no more."""
        os.close(self._file)
