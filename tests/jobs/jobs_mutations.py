"""Deliberate mistakes in the jobs' script, each of which the state machine must find."""

from __future__ import annotations

from tests.redis.mutations import Mutation

MUTATIONS = (
    Mutation("a stale delivery reports", " and tonumber(j.delivery) == tonumber(delivery) then", " then"),
    Mutation("another process reports", " and j.by == me and", " and"),
    Mutation("virtual time stands still", "        virtual = pass > virtual and pass or virtual\n", ""),
    Mutation("newcomers begin at nought", "f.pass = max(f.pass, f.class.virtual)", "f.pass = f.pass"),
    Mutation("nobody is charged", "pass + sub(member, f.at + 25)", "pass"),
    Mutation("handing back costs", "f.pass = max(0, f.pass - tonumber(j.charge))", ""),
    Mutation(
        "ties go to the last name",
        "return p < q or p == q and core.sorts_before",
        "return p > q or p == q and core.sorts_before",
    ),
    Mutation("the dead keep their jobs", "      core.strip(name, true)\n", ""),
    Mutation("killed without end", "if j.lost > most_lost then", "if false then"),
    Mutation(
        "the dead may take",
        "    if not pool.alive[me] then\n      return STALE\n    end\n    local c =",
        "    local c =",
    ),
    Mutation("keys are never free", "      core.set_dedup(j.dedup, false)\n", ""),
    Mutation("keys of others are freed", "core.dedup(j.dedup) == j.id then", "true then"),
    Mutation("one job above the bound", "return pool.free > 0", "return pool.free >= 0"),
    Mutation(
        "a full queue refuses what follows", "return core.put(id, how, body, true)", "return core.put(id, how, body)"
    ),
    Mutation(
        "paused classes go on",
        "    if pool.paused + c.paused > 0 or c.queued == 0 then\n      return answer",
        "    if c.queued == 0 then\n      return answer",
    ),
    Mutation("everybody wakes", "c.fresh = left - 1", ""),
    Mutation("nobody wakes", "core.tell(process.name, 'wake ' .. rank)", ""),
    Mutation("watchers are not told", "        core.tell(process, 'end ' .. j.id)\n", ""),
    Mutation("nobody steals", "      core.pick(c, steal, most, ids, members, takers)\n", ""),
    Mutation("passes are never forgotten", "      f.pass, f.owes = 0, false\n", ""),
    Mutation("debts are left behind", "core.write('ZREM', DEBT, off)", ""),
    Mutation("delayed too long", "j.at = core.due_after(delay)", "j.at = core.due_after(2 * delay)"),
    Mutation("results stay for ever", "for _, key in ipairs({ DEAD, KEPT }) do", "for _, key in ipairs({ DEAD }) do"),
    Mutation("errors stay for ever", "if not j.history or sub(j.history, 1, 2) ~= '0,' then", "if false then"),
    Mutation("retries are new attempts", "    j.failures, j.res = j.failures + 1, error\n", "    j.res = error\n"),
    Mutation(
        "bodies stay for ever",
        "    core.write('HDEL', BODY, gone)\n    core.write('HDEL', RES, no_res)",
        "    core.write('HDEL', RES, no_res)",
    ),
    Mutation(
        "whoever was served goes to the end",
        "table.insert(line, place_of(f, line, first, last - 1), f)",
        "line[last] = f",
    ),
    Mutation("any delivery ends plainly", "if delivery ~= '1' or ", "if "),
    Mutation("keys do not matter where it ends plainly", "    if kind.key ~= '' then", "    if false then"),
    Mutation("watchers do not matter where it ends plainly", " or byte(record, at + 72) ~= 45 then", " then"),
    Mutation("what ended plainly is still taken", "core.write('ZREM', TAKEN, plain.taken)", ""),
    Mutation("what is put twice is queued twice", "if type(j) == 'string' or j.state ~= 'gone' then", "if false then"),
)
"""A comparison with the model finds each of these."""
