"""What can go wrong between processes that share a pool. Each returns once it is over, healed from outside."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from random import Random

from tests.chaos.arena import Member, standing_still
from tests.chaos.keys import Keys
from tests.chaos.run import SLACK, Run
from tests.chaos.server import BLOCK, MAX_WAIT, POOL
from tests.redis.servers import STARTERS

Fault = Callable[[Run, Random], None]


def kill(run: Run, dice: Random) -> None:
    """`kill -9` a process that holds slots, and start a new one. Declared overshoot: 0; its work ends with it."""
    victim = _anyone(run, dice)
    run.hold_slots(victim, 2)
    process = run.process_of(victim)
    run.arena.kill(victim)
    if not run.until(lambda: run.keys.lease_ends(process) is None, run.setting.lease + SLACK):
        run.blame(
            "lost permits", f"one lease after server {victim.number} was killed the pool still counts its permits"
        )
    run.arena.replace(victim)
    run.hear_of_each_other()


def stop(run: Run, dice: Random) -> None:
    """SIGSTOP a process past its lease, then SIGCONT. Declared: its permits, which go on, for one lease."""
    victim = _anyone(run, dice)
    run.hold_slots(victim, 2)
    victim.stop()
    run.until(lambda: standing_still(victim), SLACK)
    _outlive_the_lease(run, victim)
    run.wait(dice.uniform(0.0, 0.5))
    victim.go_on()


def nap(run: Run, dice: Random) -> None:
    """SIGSTOP a process for less than its lease. Declared: 0."""
    victim = _anyone(run, dice)
    victim.stop()
    run.wait(run.setting.lease * 0.4)
    victim.go_on()


def block(run: Run, dice: Random) -> None:
    """A process computes on its event loop for longer than its lease. Declared: 0; the lease has a thread."""
    victim = _anyone(run, dice)
    run.hold_slots(victim, 2)
    seconds = 1.4 * run.setting.lease
    victim.target.halt()
    try:
        with socket.create_connection(("127.0.0.1", victim.target.port), timeout=10) as connection:
            request = f"GET {BLOCK}?{round(seconds * 1000)} HTTP/1.1\r\nHost: chaos\r\nConnection: close\r\n\r\n"
            connection.sendall(request.encode())
            connection.setblocking(False)
            if not run.until(lambda: _readable(connection), seconds + SLACK):
                run.blame("hung", f"server {victim.number} did not answer after it had computed")
    finally:
        victim.target.go_on()


def pause(run: Run, dice: Random) -> None:
    """CLIENT PAUSE: the server answers nobody. Declared: each process's share, while it lasts."""
    seconds = dice.uniform(0.5, 0.8) * run.setting.lease / 2
    run.observe()
    run.deaf = True
    run.keys.client.execute_command("CLIENT", "PAUSE", round(seconds * 1000), "ALL")
    run.wait(seconds)
    run.deaf = False


def flush(run: Run, dice: Random) -> None:
    """SCRIPT FLUSH, over and over. Declared: 0."""
    for _ in range(8):
        run.keys.client.script_flush()
        run.wait(0.1)


def lose(run: Run, dice: Random) -> None:
    """Every nth reply is lost with its connection, though the script ran. Declared: shares, if breakers open."""
    every = dice.choice((2, 3, 5))
    for member in run.arena.members:
        member.proxy.lose_every(every, "EVALSHA", "EVAL")
    run.wait(run.setting.lease / 2)
    for member in run.arena.members:
        member.proxy.lose_none()


def mute(run: Run, dice: Random) -> None:
    """Every nth reply is lost and its connection says nothing more. Declared: shares, if breakers open."""
    every = dice.choice((7, 11))
    for member in run.arena.members:
        member.proxy.lose_every(every, "EVALSHA", "EVAL", silently=True)
    run.wait(run.setting.lease / 2)
    for member in run.arena.members:
        member.proxy.lose_none()


def hold(run: Run, dice: Random) -> None:
    """All traffic stands still, then arrives late. Declared: shares, while it lasts."""
    for member in run.arena.members:
        member.proxy.hold()
    run.wait(dice.uniform(0.3, 0.45) * run.setting.lease)
    for member in run.arena.members:
        member.proxy.let_go()


def gone(run: Run, dice: Random) -> None:
    """Every connection breaks, and no new one is taken. Declared: shares, while it lasts."""
    _cut_off(run)
    run.wait(dice.uniform(0.3, 0.45) * run.setting.lease)
    _let_in(run)


def isolate(run: Run, dice: Random) -> None:
    """One process is cut off past its lease. Declared: its permits for one lease, and its share."""
    victim = _anyone(run, dice)
    run.hold_slots(victim, 2)
    victim.proxy.hold()
    _outlive_the_lease(run, victim)
    victim.proxy.let_go()


def unsubscribe(run: Run, dice: Random) -> None:
    """CLIENT KILL TYPE pubsub: calls go through, messages do not. Declared: 0."""
    for _ in range(3):
        run.observe()
        run.keys.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        run.keys.attach(run.arena.redis)
        run.wait(0.25)


def restart(run: Run, dice: Random) -> None:
    """The server is killed, or ended, and comes back with its append-only file. Declared: shares, while it is away."""
    run.observe()
    _cut_off(run)
    run.deaf = True
    run.arena.redis.restart(politely=dice.random() < 0.5)
    run.keys.attach(run.arena.redis)
    run.deaf = False
    _let_in(run)


def promote(run: Run, dice: Random) -> None:
    """A replica that has not heard the latest is promoted. Declared: the permits it does not know, for one lease."""
    old = run.arena.redis
    new = STARTERS[run.setting.kind](aof=True, replica_of=old)
    new.ask("REPLICAOF", "NO", "ONE")
    new.ask("CONFIG", "REWRITE")  # It is no replica either when it is restarted.
    for member in dice.sample(run.arena.members, 2):
        run.hold_slots(member, 2)
    _cut_off(run)
    run.wait(0.1)  # What was granted before is heard of by now.
    keys = Keys(new, run.arena.namespace, POOL)
    run.lose_unknown_to(keys)
    keys.close()
    run.arena.redis = new
    run.keys.attach(new)
    for member in run.arena.members:
        member.lost_since = time.monotonic_ns()
        member.proxy.lead_to(new.port)
    old.close()
    _let_in(run)


def full(run: Run, dice: Random) -> None:
    """maxmemory is reached: whatever takes memory is refused. Declared: shares, if calls fail for that."""
    run.keys.client.config_set("maxmemory", 1)
    run.wait(dice.uniform(0.3, 0.45) * run.setting.lease)
    run.keys.client.config_set("maxmemory", 0)


def clog(run: Run, dice: Random) -> None:
    """Every slot is taken for longer than anyone may wait: all others must be told so. Declared: 0."""
    seconds = 4 * MAX_WAIT + 2 * run.setting.timeout + SLACK
    each = -(-run.setting.limit // len(run.arena.members))
    for member in run.arena.members:
        run.load.hold(member.place, each, seconds)
    run.until(lambda: sum(map(run.holders, run.arena.members)) >= run.setting.limit, seconds)
    run.until(lambda: sum(map(run.holders, run.arena.members)) < run.setting.limit, seconds + SLACK)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        *(kill, stop, pause, flush, lose, hold, unsubscribe, restart, promote, full),
        *(nap, block, mute, gone, isolate, clog),
    )
}
"""By name."""


def _anyone(run: Run, dice: Random) -> Member:
    return dice.choice(run.arena.members)


def _outlive_the_lease(run: Run, victim: Member) -> None:
    """Wait until the pool has taken the permits of a process that cannot renew its lease any more."""
    process = run.process_of(victim)
    left = run.keys.lease_ends(process) or 0.0
    victim.lost_since = time.monotonic_ns() + round((left - 0.01) * 1e9)
    if not run.until(lambda: run.keys.lease_ends(process) is None, left + SLACK):
        run.blame("lost permits", f"the lease of server {victim.number} ended, and its permits were not taken")


def _cut_off(run: Run) -> None:
    for member in run.arena.members:
        member.proxy.refuse()
        member.proxy.cut()


def _let_in(run: Run) -> None:
    for member in run.arena.members:
        member.proxy.welcome()


def _readable(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return False
