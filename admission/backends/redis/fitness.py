"""Whether a server fits as the keeper of shared pools, in sentences for whoever runs it.

It is looked at from outside, with the login the pools will have: INFO, a few settings where they may be read, the time
small questions take, and every command the script uses, tried on one key that is deleted again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from admission.backends.redis.address import Address, Kind
from admission.backends.redis.exchange import Exchange, ServerError, Unreachable
from admission.backends.redis.findings import (
    Finding,
    Level,
    of_clock,
    of_latency,
    of_memory,
    of_persistence,
    of_replication,
    of_rights,
    of_role,
    of_version,
    parse_info,
)
from admission.backends.redis.server import Wire

__all__ = ["Finding", "Level", "examine"]


COMMANDS: Mapping[str, tuple[str, ...]] = {
    "DEL": (),
    "EXISTS": (),
    "EXPIRE": ("1",),
    "HDEL": ("1",),
    "HGET": ("1",),
    "HGETALL": (),
    "HKEYS": (),
    "HLEN": (),
    "HMGET": ("1",),
    "HSCAN": ("0",),
    "HSET": ("1", "1"),
    "ZADD": ("1", "1"),
    "ZCARD": (),
    "ZLEXCOUNT": ("-", "+"),
    "ZRANGE": ("0", "0"),
    "ZRANGEBYLEX": ("-", "+"),
    "ZRANGEBYSCORE": ("0", "1"),
    "ZRANK": ("1",),
    "ZREM": ("1",),
    "ZREVRANGEBYLEX": ("+", "-"),
    "ZSCORE": ("1",),
}
"""What the script does to keys, and the arguments that make each of them harmless. It also asks for the TIME."""

_UNKNOWN = "0" * 40
"""A script that no server has."""

_TRY = """
local denied = {}
local function try(name, ...)
  local answer = redis.pcall(name, ...)
  if type(answer) == 'table' and answer.err then
    local said = answer.err
    if string.find(said, "executing the script can't") or string.find(said, 'ACL') or string.find(said, 'NOPERM') then
      denied[#denied + 1] = name
    end
  end
end
try('TIME')
for i = 3, #ARGV do
  local words = {}
  for word in string.gmatch(ARGV[i], '%S+') do
    words[#words + 1] = word
  end
  try(words[1], KEYS[1], unpack(words, 2))
end
try(ARGV[1], ARGV[2], '')
redis.pcall('DEL', KEYS[1])
return denied
"""
"""Which commands the user may not run; a command that only fails on what it finds is allowed."""


async def examine(
    url: str | Address, *, namespace: str = "admission", deadline: float = 2.0, pings: int = 100
) -> tuple[Finding, ...]:
    """What is to be said about the server at *url*: one finding or more for each side of it, the good ones too.

    A server that cannot be asked is a finding, no error.

    Args:
        namespace: Where the pools' keys will be; the rights to them are tried.
        deadline: Seconds each question may take.
        pings: How many small questions are timed, 1 or more.

    Raises:
        ValueError: *url* is none, or *pings* is too small.
    """
    if pings < 1:
        raise ValueError(f"pings is {pings}: it must be 1 or more")
    address = url if isinstance(url, Address) else Address.parse(url)
    try:
        nodes = await _nodes(address, deadline)
    except Unreachable as error:
        return (_unanswered(error),)
    findings: list[Finding] = []
    for name, node in nodes.items():
        found = await _examine_node(node, _Plan(namespace, address.kind is Kind.CLUSTER, deadline, pings))
        findings += [replace(finding, server=name) for finding in found]
    return tuple(findings)


@dataclass(frozen=True, slots=True)
class _Plan:
    namespace: str
    clustered: bool
    """Whether the URL says that there is a cluster."""
    deadline: float
    pings: int


@asynccontextmanager
async def _exchange(address: Address, deadline: float) -> AsyncIterator[Exchange]:
    exchange = Exchange(address, deadline=deadline)
    try:
        yield exchange
    finally:
        await exchange.close()


async def _nodes(address: Address, deadline: float) -> Mapping[str, Address]:
    """Whom to look at, by the name to show: the primaries of a cluster, else the one server.

    Raises:
        Unreachable: None of the cluster's nodes could be asked for the others.
    """
    if address.kind is not Kind.CLUSTER:
        return {"": address}
    failure = Unreachable(f"{address} names no node")
    for host in address.hosts:
        node = replace(address, kind=Kind.SERVER, hosts=(host,))
        try:
            async with _exchange(node, deadline) as exchange:
                slots = await exchange.ask("CLUSTER", "SLOTS")
        except ServerError as error:
            if "cluster support disabled" not in str(error):
                raise
            return {"": node}  # What that means, the node's own INFO says.
        except Unreachable as error:
            failure = error
        else:
            found = _primaries(slots, host[0])
            return {f"{name}:{port}": replace(node, hosts=((name, port),)) for name, port in found}
    raise failure


def _primaries(slots: Wire, asked: str) -> list[tuple[str, int]]:
    """Host and port of everyone with slots. A node that does not know its own address is where it was asked."""
    found: dict[tuple[str, int], None] = {}
    for entry in slots if isinstance(slots, list) else ():
        assert isinstance(entry, list)
        primary = entry[2]
        assert isinstance(primary, list)
        found[_text(primary[0]) or asked, int(_text(primary[1]))] = None
    return list(found)


def _text(answer: Wire) -> str:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else "" if answer is None else str(answer)


async def _examine_node(address: Address, plan: _Plan) -> list[Finding]:
    async with _exchange(address, plan.deadline) as exchange:
        try:
            await _greet(exchange)
            return [
                *await _of_information(exchange, plan),
                of_latency(await _times(exchange, plan.pings)),
                *await _of_clock(exchange),
                *await _of_rights(exchange, plan),
            ]
        except Unreachable as error:
            return [_unanswered(error)]


async def _greet(exchange: Exchange) -> None:
    """Return when it answers at all.

    Raises:
        Unreachable: It does not, or it is still loading its data, or does not know the login.
    """
    try:
        await exchange.ask("PING")
    except ServerError as error:
        if error.code != "NOPERM":
            raise


def _unanswered(error: Unreachable) -> Finding:
    return Finding(level=Level.UNFIT, about="connection", text=f"{str(error).rstrip('.')}.")


async def _of_information(exchange: Exchange, plan: _Plan) -> list[Finding]:
    """What INFO and CONFIG GET tell, as far as they may be asked."""
    try:
        information = parse_info(_text(await exchange.ask("INFO")))
    except ServerError as error:
        text = f"INFO is not answered ({error}), so version, memory and persistence were not looked at."
        return [Finding(level=Level.NOTE, about="information", text=text)]
    settings = await _settings(exchange)
    return [
        *of_version(information, clustered=plan.clustered),
        *of_role(information, clustered=plan.clustered),
        *of_memory(information),
        *of_persistence(information, settings),
        *of_replication(information, settings, clustered=plan.clustered),
    ]


async def _settings(exchange: Exchange) -> Mapping[str, str]:
    """The settings that matter and that no INFO shows; none where CONFIG is not to be had, as with many providers."""
    settings = {}
    for name in ("appendfsync", "save", "min-replicas-to-write"):
        try:
            answer = await exchange.ask("CONFIG", "GET", name)
        except ServerError:
            return {}
        if isinstance(answer, list) and len(answer) == 2:
            settings[name] = _text(answer[1])
    return settings


async def _times(exchange: Exchange, pings: int) -> list[float]:
    """Seconds each of so many small questions took, one after the other."""
    times = []
    for _ in range(pings):
        asked = time.perf_counter()
        with suppress(ServerError):  # Not allowed, and as quickly said.
            await exchange.ask("PING")
        times.append(time.perf_counter() - asked)
    return times


async def _of_clock(exchange: Exchange) -> Iterator[Finding]:
    """Its clock, next to this machine's."""
    asked = time.time()
    try:
        answer = await exchange.ask("TIME")
    except ServerError:  # What the script may and may not do is told with the rights.
        return iter(())
    here = (asked + time.time()) / 2
    seconds, micro = (int(_text(part)) for part in (answer if isinstance(answer, list) else (0, 0)))
    return of_clock(seconds + micro / 1e6 - here)


async def _of_rights(exchange: Exchange, plan: _Plan) -> Iterator[Finding]:
    """Whether this login may do all that a pool needs: it is tried, on one key that is deleted again."""
    tag = f"{{{plan.namespace}:check}}"
    key, channel = f"{tag}st", f"{tag}to:check"
    publish, subscribe = ("SPUBLISH", "SSUBSCRIBE") if plan.clustered else ("PUBLISH", "SUBSCRIBE")
    denied = []
    if not await _may(exchange, "EVALSHA", _UNKNOWN, 1, key):
        denied.append("EVALSHA")
    words = [" ".join((name, *arguments)) for name, arguments in COMMANDS.items()]
    try:
        answer = await exchange.ask("EVAL", _TRY, 1, key, publish, channel, *words)
    except ServerError as error:
        if error.code == "MOVED":  # Another node has that slot, and tells.
            return iter(())
        denied.append("EVAL")
        answer = []
    denied += [_text(name) for name in answer] if isinstance(answer, list) else []
    # The last question on this connection: afterwards it takes no others.
    if not await _may(exchange, subscribe, channel):
        denied.append(subscribe)
    return of_rights(
        denied,
        user=exchange.address.username or "default",
        namespace=plan.namespace,
        clustered=plan.clustered,
    )


async def _may(exchange: Exchange, *command: str | int) -> bool:
    try:
        await exchange.ask(*command)
    except ServerError as error:
        return error.code != "NOPERM"
    return True
