"""Deliberate mistakes in a script, each of which a test must find: what one is, and those of the pool's script."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutation:
    """One mistake: a text of the script that stands there once, and what stands there instead."""

    name: str
    text: str
    instead: str

    def applied(self, source: str) -> str:
        """The script with the mistake in it. Raises AssertionError when its place in the script is gone."""
        assert source.count(self.text) == 1, f"mutation {self.name!r}: its text must be in the script once"
        return source.replace(self.text, self.instead)


OF_RULES = (
    Mutation("virtual time stands still", "c.virtual = max(c.virtual, t.start)\n", ""),
    Mutation("settlement is forgotten", "f.finish = max(0, f.finish + difference)", ""),
    Mutation("withdrawal is not refunded", "f.finish = max(0, f.finish - t.charge)", ""),
    Mutation("tenant's tickets lose their order", "f.waiting > 0 and start < f.newest", "false"),
    Mutation("refused newcomers count", "f.newest = newest\n", ""),
    Mutation("busy periods never end", "  c.period = c.period + 1 -- Of this call.\n", ""),
    Mutation("overdue much too late", "now - arrival >= c.max_delay", "now - arrival >= 2 * c.max_delay"),
    Mutation(
        "wide heads run above the limit", "pool.in_use > 0 and pool.in_use + t.slots > pool.limit then", "false then"
    ),
    Mutation("lobby never moves up", "while pool.lobby > 0 and pool.moves > 0 do", "while false do"),
    Mutation("credit is not spent", "(c.guaranteed - 1e6) * slots", "c.guaranteed * slots"),
    Mutation("credit has no cap", "c.queued > 0 and c.most_credit or 0", "c.queued > 0 and 1e15 or 0"),
    Mutation("credit is saved up by who does not wait", "c.most_credit or 0)", "c.most_credit or c.most_credit)"),
    Mutation("what is owed is forgotten", "-8 * c.most_credit)", "0)"),
    Mutation("what is owed has no end", "-8 * c.most_credit)", "-1e15)"),
    Mutation(
        "who starts at once pays nothing", "if not c.exempt then\n      core.spend", "if false then\n      core.spend"
    ),
    Mutation("ceiling is no cap", "c.ceiling < 1 and c.held > 0", "false"),
    Mutation("start rate has no burst", "next_start - c.start_allowance\n        due", "next_start\n        due"),
    Mutation("start rate gathers no debt", "max(p.next_start, now) + c", "now + c"),
    Mutation("fair push-out counts one too few", ".waiting > f.waiting then", ".waiting >= f.waiting then"),
    Mutation("push-out takes the first", "lowest.from, lowest.to, true)", "lowest.from, lowest.to)"),
    Mutation("lobby is overtaken", "return first and first.start <= t.start", "return false"),
    Mutation("hopeless is let in", "now + predicted > t.expires then", "now + predicted > 2 * t.expires then"),
    Mutation("tenant bound is one too many", "f.waiting > bounds.max_queued", "f.waiting > 1 + bounds.max_queued"),
    Mutation(
        "CoDel evicts too early", "now < t.arrival + 2 * c.codel_target then", "now < t.arrival + c.codel_target then"
    ),
    Mutation("CoDel forgets the shortest wait", "p.shortest, p.changed = min(p.shortest, waited), true", ""),
    Mutation("position counts from zero", "return place - others, place + 1", "return place - others, place"),
    Mutation("forecast is not corrected", "return grants * gap * p.correction", "return grants * gap"),
    Mutation("forecast forgets an open gap", "c.queued > 0 and open_for > p.gap", "false"),
)
"""A trace beside the core finds each of these."""

OF_SHARING = (
    Mutation("stale fences release", "gone or t.fence ~= fence then", "gone then"),
    Mutation("release keeps the slots", "pool.in_use = pool.in_use - t.slots\n", ""),
    Mutation("offer twice takes two", "return core.present(t) -- The reply", "t.state = 'gone' -- The reply"),
    Mutation(
        "dead processes keep their slots", "core.strip(name, portion, 'evicted-disconnect')", "core.process(name)"
    ),
    Mutation("goodbye keeps the waiters", "      elseif t.state ~= 'gone' then\n        core.evict(t, reason)", ""),
    Mutation("hold does not count", "    core.take(c, t)\n    core.settle()", "    t.state = 'running'"),
    Mutation(
        "hold leaves its place in line", "      core.step_out(c, t)\n    end\n    core.take", "    end\n    core.take"
    ),
    Mutation("digest leaves runners out", "p.digest = (p.digest + sign * 2 *", "p.digest = (p.digest + 0 *"),
    Mutation("beats compare nothing", "tonumber(digest) ~= core.process(me).before", "false"),
    Mutation(
        "one slot above the limit",
        "pool.in_use + t.slots > pool.limit then",
        "pool.in_use + t.slots > pool.limit + 1 then",
    ),
    Mutation(
        "withdrawn runners keep their slots",
        "    core.finish(t, 0)\n      core.tell(t, '8 ' .. id)\n    else",
        "    t.state = 'gone'\n    else",
    ),
    Mutation("fences repeat", "pool.fence = pool.fence + 1", "pool.fence = pool.fence + (pool.in_use % 2)"),
    Mutation("index keeps ended tickets", "core.write('ZREM', OWN, gone)", ""),
    Mutation("deadlines are left behind", "core.write('ZREM', DUE, untimed)", ""),
    Mutation("tenants are left behind", "core.write('HDEL', F, gone)", ""),
    Mutation("keys stay for ever", "if pool.no_tickets and #set > 0 then", "if false then"),
)
"""The state machine finds each of these."""
