-- One step of a pool that many processes share: a batch of operations, each of which ends in a pump.
--
-- The rules are those of `core.py`, function by function and under the same names; a differential test holds the two to
-- the same decisions. What only a shared pool has stands in sections of its own: leases, fences, the audit.
--
-- KEYS, all in one cluster slot. Everything is readable text; times are microseconds that never go back, tags are
-- thousandths of a cost unit and credits millionths of a slot, as in Python.
--
--   st     HASH  `pool`, and for each class `class<rank>`, `pace<rank>`: names and values. `rules`, `audit`
--   d      HASH  id -> a live ticket, see `core.decode`
--   own    ZSET  ids in lexical order: they begin with their process, so a dead one's tickets are found without a scan
--   lease  ZSET  process -> when its lease ends
--   proc   HASH  process -> slots, running, waiting, digest of its ids, since when
--   w      ZSET  who waits, lexical: place, class, start tag, arrival number, id. So ZRANGE shows the order of service,
--                the whole line before the lobby, and ZRANK is a position
--   old    ZSET  who waits in classes whose rules ask for the oldest, lexical: class, arrival number, time, id
--   due    ZSET  arrival number and id -> when that waiter's patience ends
--   f      HASH  class:tenant -> finish tag, newest start tag, waiting, running
--   debt   ZSET  tenants that left with a tag ahead of their class, lexical: class, tag, tenant; to forget the smallest
--
-- ARGV  process, time or -, command to publish with, epoch and fence the caller saw last, version of the rules, rules
--       of the pool, number of classes, rules of each; then the operations, each a verb and its arguments, see `ARITY`
--
-- Redis looks for free memory before a script's first write only, so a step is done whole or not at all. A step that
-- does more than take in newcomers begins with a deletion, which needs no memory: slots come back and leases are
-- renewed also where there is none left.
--
-- The functions are fields of one table because Lua makes them anew in every call, and every local of the chunk that a
-- function mentions costs a walk over all such locals. What not every call needs is made on demand: see `waiting` and
-- `rarely`.

local ST, D, OWN, LEASE, PROC, W, OLD, DUE, F, DEBT = unpack(KEYS)
local GRANTED, WAITING, LOBBY, REFUSED, DONE, STALE, UNKNOWN = 1, 2, 3, 5, 6, 7, 8 -- answers, as `Kind`
local floor, INF, max, min = math.floor, math.huge, math.max, math.min
local byte, format, match, sub = string.byte, string.format, string.match, string.sub
local me, now = ARGV[1], nil
local call = redis.call
local core = {}
local pool = {
  tickets = {}, -- by id; false: there is no such ticket
  classes = {}, -- by rank, those this call has looked at
  contenders = nil, -- classes with waiters, highest rank first; nil when that has to be looked up
  flows = {}, -- tenants by class:tenant
  read_ahead = {}, -- the same, as they were stored
  processes = {},
  leases = {}, -- which of them are alive
  moves = 1000, -- tickets one call moves at most besides those its operations name; the next call goes on
  subject = nil, -- the ticket the operation at hand is about: its caller gets an answer instead
  told = {}, -- what became of other tickets of the caller
  messages = {}, -- and of others, by process
  resync = false,
}

-- ------------------------------------------------------------------ what is kept

-- What follows from a class's rules and the limit.
function core.fit(c)
  -- The epsilon: 0.1 x 30 is 3.0000000000000004 and 0.7 x 10 is 6.999...; both mean what they say.
  c.cap = max(1, floor(c.ceiling * pool.limit + 1e-9))
  c.most_credit = (pool.limit + 1) * 1e6
  c.widest = (c.ceiling < 1 and not c.exempt) and c.cap or INF
end

function core.class(rank)
  local c = pool.classes[rank]
  if c then
    return c
  end
  local raw = call('HGET', ST, 'class' .. rank)
  c = { rank = rank, raw = raw, ceiling = 1, guaranteed = 0, period = 0 }
  c.from, c.to = '[line' .. rank .. ':', '(line' .. rank .. ';'
  if raw then
    local held, running, queued, lobby, credit, starts_seen, virtual, paused, debts = match(
      raw,
      '^held=(%S+) running=(%S+) queued=(%S+) lobby=(%S+) credit=(%S+) starts_seen=(%S+) virtual=(%S+) paused=(%d) '
        .. 'debts=(%S+)$'
    )
    c.held, c.running, c.queued, c.lobby = tonumber(held), tonumber(running), tonumber(queued), tonumber(lobby)
    c.credit, c.starts_seen, c.virtual = tonumber(credit), tonumber(starts_seen), tonumber(virtual)
    c.paused, c.debts = paused == '1', tonumber(debts)
  else
    c.held, c.running, c.queued, c.lobby, c.credit, c.starts_seen, c.virtual = 0, 0, 0, 0, 0, 0, 0
    c.paused, c.debts = false, 0
  end
  -- Only what differs from a plain class is said. A class the newest rules do not know is plain until it is empty.
  for name, value in string.gmatch(rank < pool.known and pool.rules[pool.first_rules + rank] or '', '(%S+)=(%S+)') do
    c[name] = tonumber(value)
  end
  core.fit(c)
  pool.classes[rank] = c
  pool.ranks = max(pool.ranks, rank + 1)
  return c
end

-- What a class knows of its line's pace, of its standing queue (CoDel), and when its start rate's bucket is full again.
function core.pace(c)
  local p = c.pace
  if not p then
    p = { gap = 0, advance = 0, seen = 0, last = INF, correction = 1, next_start = 0 }
    p.shortest, p.interval_end, p.overloaded = INF, INF, 0
    local raw = call('HGET', ST, 'pace' .. c.rank)
    if raw then
      local gap, advance, seen, last, correction, next_start, shortest, interval_end, overloaded = match(
        raw,
        '^gap=(%S+) advance=(%S+) seen=(%S+) last=(%S+) correction=(%S+) next_start=(%S+) shortest=(%S+) '
          .. 'interval_end=(%S+) overloaded=(%S+)$'
      )
      p.gap, p.advance, p.seen, p.correction = tonumber(gap), tonumber(advance), tonumber(seen), tonumber(correction)
      p.last, p.next_start = tonumber(last) or INF, tonumber(next_start) -- "never"
      p.shortest, p.interval_end = tonumber(shortest) or INF, tonumber(interval_end) or INF
      p.overloaded = tonumber(overloaded)
    end
    c.pace = p
  end
  return p
end

-- running      slots fence since class:tenant
-- line, lobby  slots charge start number arrival expires expires_as by_age position predicted correction class:tenant
function core.decode(id, record)
  local t = { id = id, process = sub(id, 1, 16) }
  if byte(record) == 114 then -- r
    local slots
    slots, t.fence, t.since, t.key = match(record, '^running (%d+) (%S+) (%S+) (.*)$')
    t.state, t.slots = 'running', tonumber(slots)
    t.rank = byte(t.key) - 48
  else
    local slots, charge, start, number, arrival, expires, by_age, position, predicted, correction
    t.state, slots, charge, start, number, arrival, expires, t.expires_as, by_age, position, predicted, correction,
      t.key = match(record, '^(%l+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%d) (%S+) (%S+) (%S+) (.*)$')
    t.rank, t.slots, t.charge, t.start = byte(t.key) - 48, tonumber(slots), tonumber(charge), tonumber(start)
    t.number, t.arrival, t.expires = tonumber(number), tonumber(arrival), tonumber(expires) or INF
    t.by_age, t.position = by_age == '1', tonumber(position)
    t.predicted, t.correction = tonumber(predicted), tonumber(correction)
    t.member = core.member(t.state, t)
  end
  t.was = t.state
  return t
end

function core.encode(t)
  if t.state == 'running' then
    return 'running ' .. t.slots .. ' ' .. t.fence .. ' ' .. t.since .. ' ' .. t.key
  end
  -- The key is put behind by hand: `format` ends a text at its first zero byte.
  return format(
    '%s %d %d %d %d %d %s %s %d %d %s %.17g ',
    t.state, t.slots, t.charge, t.start, t.number, t.arrival, t.expires < INF and format('%d', t.expires) or 'never',
    t.expires_as, t.by_age and 1 or 0, t.position, t.predicted and format('%.17g', t.predicted) or '-', t.correction
  ) .. t.key
end

function core.ticket(id)
  local t = pool.tickets[id]
  if t == nil then
    local record = call('HGET', D, id)
    t = record and core.decode(id, record)
    pool.tickets[id] = t
  end
  return t
end

-- The ticket of this id if it waits or runs.
function core.live(id)
  local t = core.ticket(id)
  return t and t.state ~= 'gone' and t or nil
end

function core.process(name)
  local p = pool.processes[name]
  if not p then
    local raw = call('HGET', PROC, name)
    local slots, running, waiting, digest, since = match(raw or '0 0 0 0 -', '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
    p = {
      raw = raw, slots = tonumber(slots), running = tonumber(running), waiting = tonumber(waiting),
      digest = tonumber(digest), since = tonumber(since) or now,
    }
    pool.processes[name] = p
  end
  return p
end

-- Say what became of a ticket, to its process.
function core.tell(t, line)
  if t.process ~= me then
    local lines = pool.messages[t.process]
    if lines then
      lines[#lines + 1] = line
    else
      pool.messages[t.process] = { line }
    end
  elseif t ~= pool.subject then
    pool.told[#pool.told + 1] = line
  end
end

-- ------------------------------------------------------------------ fairness (policy/fairness.py)

function core.flow(c, key)
  local f = pool.flows[key]
  if not f then
    local raw = pool.read_ahead[key]
    if c.period > 0 then
      raw = false -- Read before the class came to rest.
    elseif raw == nil then
      raw = call('HGET', F, key)
    end
    f = { key = key, class = c, raw = raw, period = c.period, finish = 0, newest = 0, waiting = 0, running = 0 }
    if raw then
      local finish, newest, waiting, running = match(raw, '^(%d+) (%d+) (%d+) (%d+)$')
      f.finish, f.newest = tonumber(finish), tonumber(newest)
      f.waiting, f.running = tonumber(waiting), tonumber(running)
      if f.waiting == 0 and f.running == 0 then
        f.debt = core.debt(c, f)
      end
    end
    pool.flows[key] = f
  elseif f.period ~= c.period then -- It is from a busy period that has ended.
    f.finish, f.newest, f.debt, f.period = 0, 0, nil, c.period
  end
  return f
end

function core.arrive(c, f, charge)
  local start = max(f.finish, c.virtual)
  f.finish = start + charge
  if f.waiting > 0 and start < f.newest then
    start = f.newest
  end
  f.newest = start
  f.waiting = f.waiting + 1
  return start
end

-- When nothing of this class waits or runs, its busy period ends, and with it all debts. Tags start over from 0, so
-- they never outgrow what a double holds exactly.
function core.rest(c)
  if c.held ~= 0 or c.queued ~= 0 or c.lobby ~= 0 then
    return
  end
  if c.debts > 0 then
    core.forgive(c, 4096)
    c.debts = 0
  end
  c.virtual = 0
  c.period = c.period + 1 -- Of this call.
end

-- ------------------------------------------------------------------ what is free (core.py, policy/shares.py)

function core.held_back(c, slots)
  if c.paused then
    return 'class-paused'
  end
  -- A ceiling of 1 is the pool's own limit: a head too wide for it is not passed over, it stops the pump.
  if c.ceiling < 1 and c.held > 0 and c.held + slots > c.cap then
    return 'class-ceiling'
  end
  if c.start_interval and now < core.pace(c).next_start - c.start_allowance then
    return 'start-rate'
  end
end

-- What a class may claim, in millionths of a slot; below 0, what it has had beyond its share.
function core.credit(c)
  return min(c.credit + c.guaranteed * (pool.starts - c.starts_seen), c.queued > 0 and c.most_credit or 0)
end

-- Its line has its first waiter, or none any more: what was saved up is gone, what is owed stays.
function core.lose_savings(c)
  if c.guaranteed > 0 then
    c.credit, c.starts_seen = min(core.credit(c), 0), pool.starts
  end
end

-- A class is granted slots, which are not among the starts yet.
function core.spend(c, slots)
  if c.guaranteed > 0 then
    c.credit = max(core.credit(c) + (c.guaranteed - 1e6) * slots, -8 * c.most_credit)
    c.starts_seen = pool.starts + slots
  end
end

-- Whether a newcomer with nobody before it can run at once: what `pump` would find.
function core.runs_alone(c, slots)
  local in_use = pool.in_use
  return pool.queued == 0
    and in_use < pool.limit
    and (in_use + slots <= pool.limit or in_use == 0)
    and pool.paused == 0
    and not core.held_back(c, slots)
end

-- Count the slots of a ticket that begins to run, under the next fence.
function core.take(c, t)
  local f = core.flow(c, t.key)
  f.waiting = max(0, f.waiting - 1)
  f.running = f.running + 1
  c.virtual = max(c.virtual, t.start)
  c.held = c.held + t.slots
  c.running = c.running + 1
  pool.in_use = pool.in_use + t.slots
  pool.running = pool.running + 1
  pool.fence = pool.fence + 1
  t.epoch, t.grant, t.in_use = pool.epoch, pool.fence, pool.in_use
  t.fence = format('%d:%d', t.epoch, t.grant)
  t.since, t.state = pool.time, 'running'
end

-- Take the slots for a ticket that counts as waiting and stands nowhere any more.
function core.start(c, t)
  pool.starts = pool.starts + t.slots
  if c.start_interval then
    local p = core.pace(c)
    p.next_start, p.changed = max(p.next_start, now) + c.start_interval, true
  end
  core.take(c, t)
end

-- A running ticket ends: its slots are free, its tenant's account is settled.
function core.finish(t, difference)
  local c = core.class(t.rank)
  local f = core.flow(c, t.key)
  t.state = 'gone'
  c.held = c.held - t.slots
  c.running = c.running - 1
  pool.in_use = pool.in_use - t.slots
  pool.running = pool.running - 1
  f.running = max(0, f.running - 1)
  f.finish = max(0, f.finish + difference)
  core.rest(c)
end

-- ------------------------------------------------------------------ arrival and departure

function core.offer(id, key, slots, charge, patience, expires_as, may_wait)
  local t = pool.tickets[id]
  if t then
    if t.state ~= 'gone' then
      return core.present(t) -- The reply to an earlier call was lost.
    end
    core.flush_tickets() -- It left during this very call: let that be written first.
  end
  local rank = byte(key) - 48
  local c = core.class(rank)
  pool.arrivals = pool.arrivals + 1
  slots, charge, patience = tonumber(slots), tonumber(charge), tonumber(patience)
  local f = core.flow(c, key)
  if pool.closed == 1 or (patience and patience <= 0) or slots > c.widest then
    f.finish = max(f.finish, c.virtual) -- What its arrival and withdrawal would leave.
    local reason = patience and patience <= 0 and 'rejected-hopeless' or 'rejected-too-wide'
    return core.refusal(c, pool.closed == 1 and 'rejected-draining' or reason, 0)
  end
  t = {
    id = id, process = sub(id, 1, 16), key = key, rank = rank, slots = slots, charge = charge, number = pool.arrivals,
    arrival = now, expires = patience and now + patience or INF, expires_as = expires_as, position = 0, correction = 0,
  }
  pool.tickets[id], pool.subject = t, t
  local newest = f.newest
  t.start = core.arrive(c, f, charge)
  if c.exempt or core.runs_alone(c, slots) then
    if not c.exempt then
      core.spend(c, slots)
    end
    core.start(c, t)
    return { GRANTED, t.epoch, t.grant, t.in_use }
  end
  return core.queue(c, t, f, newest, may_wait)
end

-- The state of a live ticket, as the answer to its offer.
function core.present(t, position, predicted)
  if t.state == 'running' then
    if not t.grant then
      local epoch, grant = match(t.fence, '^(%d+):(%d+)$')
      return { GRANTED, tonumber(epoch), tonumber(grant), pool.in_use }
    end
    return { GRANTED, t.epoch, t.grant, t.in_use }
  end
  if not position then
    position, predicted = core.place(t)
  end
  return { t.state == 'line' and WAITING or LOBBY, position, core.rounded(predicted) }
end

function core.release(id, fence, difference)
  local t = pool.tickets[id]
  local gone = not t or t.state == 'gone'
  if gone or t.fence ~= fence then
    local epoch, grant = match(fence, '^(%d+):(%d+)$')
    core.heard_of(tonumber(epoch), tonumber(grant))
    if gone then
      return UNKNOWN
    elseif t.state == 'running' then
      return STALE
    end
    core.leave_line(t) -- Its grant was lost in a failover, and the work is over.
  else
    core.finish(t, tonumber(difference))
  end
  if pool.queued > 0 then
    core.settle()
  end
  return DONE
end

-- ------------------------------------------------------------------ writing

-- In chunks: a call takes only so many arguments.
function core.write(command, key, list)
  for i = 1, #list, 1000 do
    call(command, key, unpack(list, i, min(i + 999, #list)))
  end
end

-- What a ticket in this state means for the counts of its process. A waiter adds its mark to the digest, a running
-- ticket adds it twice.
function core.account(p, t, state, sign)
  local n = tonumber(sub(sub(t.id, 18), -6), 16) or 0
  if state == 'running' then
    p.slots = p.slots + sign * t.slots
    p.running = p.running + sign
    p.digest = (p.digest + sign * 2 * (n * n + 1)) % 2 ^ 52
  else
    p.waiting = p.waiting + sign
    p.digest = (p.digest + sign * (n * n + 1)) % 2 ^ 52
  end
end

-- Entries, their index, their deadlines and their processes' counts follow from where each ticket was and is.
function core.flush_tickets()
  local set, gone, owned, timed, untimed = {}, {}, {}, {}, {}
  for id, t in pairs(pool.tickets) do
    if t and t.state ~= t.was then
      local was, state, p = t.was, t.state, core.process(t.process)
      if was then
        core.account(p, t, was, -1)
      end
      if state == 'gone' then
        if was then
          gone[#gone + 1] = id
        end
      else
        core.account(p, t, state, 1)
        set[#set + 1] = id
        set[#set + 1] = core.encode(t)
        if not was then
          owned[#owned + 1] = '0'
          owned[#owned + 1] = id
        end
      end
      if t.expires and t.expires < INF then
        local waited, waits = was == 'line' or was == 'lobby', state == 'line' or state == 'lobby'
        if waits and not waited then
          timed[#timed + 1] = format('%d', t.expires)
          timed[#timed + 1] = format('%015d:%s', t.number, id)
        elseif waited and not waits then
          untimed[#untimed + 1] = format('%015d:%s', t.number, id)
        end
      end
      if pool.audit then
        core.walked(t)
      end
      t.was = state
      if state == 'gone' then
        pool.tickets[id] = false
      end
    end
  end
  core.write('HSET', D, set)
  core.write('ZADD', OWN, owned)
  core.write('ZADD', DUE, timed)
  -- A key that has just come into being has no time to live yet; those that stay get theirs with every beat.
  if pool.no_tickets and #set > 0 then
    call('EXPIRE', D, '86400')
    call('EXPIRE', OWN, '86400')
  end
  if #timed > 0 then
    call('EXPIRE', DUE, '86400')
  end
  core.write('HDEL', D, gone)
  core.write('ZREM', OWN, gone)
  core.write('ZREM', DUE, untimed)
  pool.no_tickets = pool.running + pool.queued + pool.lobby == 0
end

function core.flush_flows()
  local set, gone, indebted, quit = {}, {}, {}, {}
  for key, f in pairs(pool.flows) do
    local c = f.class
    if f.period ~= c.period then -- Its class came to rest: what was a debt is forgotten already.
      f.finish, f.debt = 0, nil
    end
    local present = f.waiting > 0 or f.running > 0
    local debt = not present and f.finish > c.virtual and core.debt(c, f) or nil
    if f.debt and f.debt ~= debt then
      quit[#quit + 1] = f.debt
      c.debts = c.debts - 1
    end
    if debt and f.debt ~= debt then
      indebted[#indebted + 1] = '0'
      indebted[#indebted + 1] = debt
      c.debts = c.debts + 1
    end
    if present or debt then
      local record = format('%d %d %d %d', f.finish, f.waiting > 0 and f.newest or 0, f.waiting, f.running)
      if record ~= f.raw then
        set[#set + 1] = key
        set[#set + 1] = record
      end
    elseif f.raw then
      gone[#gone + 1] = key
    end
  end
  core.write('HSET', F, set)
  core.write('ZADD', DEBT, indebted)
  if pool.was_empty and #set > 0 then
    call('EXPIRE', F, '86400')
  end
  core.write('HDEL', F, gone)
  core.write('ZREM', DEBT, quit)
  if #indebted > 0 then
    call('EXPIRE', DEBT, '86400')
    for _, c in pairs(pool.classes) do
      if c.debts > 1024 then -- Of the tenants that have left, the smallest debts are forgiven.
        core.forgive(c, c.debts - 512)
      end
    end
  end
end

function core.flush_processes()
  local mine = pool.processes[me]
  if mine and (not mine.raw or mine.gone) and not mine.beats and mine.running + mine.waiting > 0 then
    core.renew(now + 15e6) -- It has not sent a beat yet; nothing may be held by a process nobody watches.
  end
  for name, p in pairs(pool.processes) do
    if p.gone and p.running + p.waiting == 0 then
      if p.raw then
        call('HDEL', PROC, name)
      end
    elseif p.raw or p.beats or p.running + p.waiting > 0 then
      local record = format('%d %d %d %d %d', p.slots, p.running, p.waiting, p.digest, p.since)
      if record ~= p.raw then
        call('HSET', PROC, name, record)
        if not p.raw then
          call('EXPIRE', PROC, '86400')
        end
      end
    end
  end
end

function core.flush_pool()
  local list = {
    'pool',
    format(
      'in_use=%d limit=%d queued=%d lobby=%d running=%d paused=%d closed=%d now=%s epoch=%d fence=%d arrivals=%d '
        .. 'starts=%d ranks=%d version=%d reap_at=%d',
      pool.in_use, pool.limit, pool.queued, pool.lobby, pool.running, pool.paused, pool.closed, pool.time, pool.epoch,
      pool.fence, pool.arrivals, pool.starts, pool.ranks, pool.version, pool.reap_at
    ),
  }
  for rank, c in pairs(pool.classes) do
    local record = format(
      'held=%d running=%d queued=%d lobby=%d credit=%d starts_seen=%d virtual=%d paused=%d debts=%d',
      c.held, c.running, c.queued, c.lobby, c.credit, c.starts_seen, c.virtual, c.paused and 1 or 0, c.debts
    )
    if record ~= c.raw then
      list[#list + 1] = 'class' .. rank
      list[#list + 1] = record
    end
    local p = c.pace
    if p and p.changed then
      list[#list + 1] = 'pace' .. rank
      list[#list + 1] = format(
        'gap=%.17g advance=%.17g seen=%d last=%s correction=%.17g next_start=%.17g shortest=%s interval_end=%s '
          .. 'overloaded=%d',
        p.gap, p.advance, p.seen, core.never(p.last), p.correction, p.next_start, core.never(p.shortest),
        core.never(p.interval_end), p.overloaded
      )
    end
  end
  if pool.new_rules then
    list[#list + 1] = 'rules'
    list[#list + 1] = pool.new_rules
  end
  call('HSET', ST, unpack(list))
  if pool.is_new then
    call('EXPIRE', ST, '86400')
  end
end

-- ------------------------------------------------------------------ what is needed when someone waits

local function waiting()
  -- ---------------------------------------------------------------- the line (line.py)

  -- Where a ticket stands in `w`.
  function core.member(state, t)
    return format('%s%d:%016d:%015d:%s', state, t.rank, t.start, t.number, t.id)
  end

  function core.contending()
    if not pool.contenders then
      pool.contenders = {}
      if pool.queued > 0 then
        for rank = 0, pool.ranks - 1 do
          local c = core.class(rank)
          if c.queued > 0 then
            pool.contenders[#pool.contenders + 1] = c
          end
        end
      end
    end
    return pool.contenders
  end

  -- The first waiter, or the last, at a place in `w`; what has no ticket there is taken out.
  function core.at(c, from, to, backwards)
    while true do
      local found
      if backwards then
        found = call('ZREVRANGEBYLEX', W, to, from, 'LIMIT', '0', '1')[1]
      else
        found = call('ZRANGEBYLEX', W, from, to, 'LIMIT', '0', '1')[1]
      end
      if not found then
        core.recount(c)
        return nil
      end
      local t = core.ticket(match(found, ':%d+:%d+:(.*)$'))
      if t and t.member == found and t.state ~= 'gone' then
        return t
      end
      call('ZREM', W, found)
      core.recount(c)
    end
  end

  function core.head(c)
    if not c.head and c.queued > 0 then
      c.head = core.at(c, c.from, c.to)
    end
    return c.head
  end

  function core.head_of_lobby(c)
    return core.at(c, '[lobby' .. c.rank .. ':', '(lobby' .. c.rank .. ';')
  end

  -- Who has waited longest. Where the rules did not ask for it when they came, it is the head.
  function core.oldest(c)
    while not c.oldest do
      local found = call('ZRANGEBYLEX', OLD, '[' .. c.rank .. ':', '(' .. c.rank .. ';', 'LIMIT', '0', '1')[1]
      if not found then
        return core.head(c)
      end
      local t = core.ticket(sub(found, 36))
      if t and t.state == 'line' then
        c.oldest = t
      else
        call('ZREM', OLD, found)
      end
    end
    return c.oldest
  end

  function core.old_member(t)
    return format('%d:%015d:%016d:%s', t.rank, t.number, t.arrival, t.id)
  end

  -- How many stand before a waiter in its class, and its position.
  function core.before(t)
    local place, others = call('ZRANK', W, t.member) or 0, 0
    if t.state == 'line' then
      for rank = 0, t.rank - 1 do
        others = others + core.class(rank).queued
      end
      return place - others, place + 1
    end
    -- The whole line stands before the lobby, whatever its classes.
    for rank = 0, t.rank - 1 do
      others = others + core.class(rank).lobby
    end
    return core.class(t.rank).queued + place - pool.queued - others, place + 1
  end

  function core.stand(t, state)
    t.state = state
    t.member = core.member(state, t)
    call('ZADD', W, '0', t.member)
    if pool.queued + pool.lobby == 0 then
      call('EXPIRE', W, '86400')
    end
  end

  -- Stand a ticket in line.
  function core.enter(c, t)
    if c.queued == 0 then
      pool.contenders = nil
      core.lose_savings(c)
      local p = core.pace(c)
      p.last, p.changed = now, true
      if c.codel_target then
        p.shortest, p.interval_end = INF, now + c.codel_interval
      end
    end
    core.stand(t, 'line')
    c.queued = c.queued + 1
    pool.queued = pool.queued + 1
    if c.max_delay or c.codel_target then
      t.by_age = true
      if c.oldest and t.number < c.oldest.number then
        c.oldest = nil -- It comes from the lobby.
      end
      call('ZADD', OLD, '0', core.old_member(t))
      if not pool.kept_by_age then
        pool.kept_by_age = true
        call('EXPIRE', OLD, '86400')
      end
    end
    local head = c.head
    if c.queued == 1 or (head and (t.start < head.start or t.start == head.start and t.number < head.number)) then
      c.head = t
    end
  end

  -- Take a ticket out of the line; it still counts as waiting for its tenant.
  function core.step_out(c, t)
    call('ZREM', W, t.member)
    if t.by_age then
      call('ZREM', OLD, core.old_member(t))
      t.by_age, pool.kept_by_age = false, false -- The key may be gone with it.
    end
    if c.head == t then
      c.head = nil
    end
    if c.oldest == t then
      c.oldest = nil
    end
    c.queued = c.queued - 1
    pool.queued = pool.queued - 1
    if c.queued == 0 then
      core.emptied(c)
    end
  end

  function core.emptied(c)
    pool.contenders = nil
    core.lose_savings(c)
    if c.codel_target then
      local p = core.pace(c)
      p.interval_end, p.overloaded, p.changed = INF, 0, true
    end
  end

  -- Move a newcomer from the line to the lobby.
  function core.park(c, t)
    core.step_out(c, t)
    core.stand(t, 'lobby')
    c.lobby = c.lobby + 1
    pool.lobby = pool.lobby + 1
  end

  function core.leave_lobby(c, t)
    call('ZREM', W, t.member)
    c.lobby = c.lobby - 1
    pool.lobby = pool.lobby - 1
  end

  -- A waiter goes without a permit, from wherever it stands: its tenant gets the charge back.
  function core.leave_line(t)
    local c = core.class(t.rank)
    if t.state == 'lobby' then
      core.leave_lobby(c, t)
    else
      core.step_out(c, t)
    end
    t.state = 'gone'
    local f = core.flow(c, t.key)
    f.waiting = max(0, f.waiting - 1)
    f.finish = max(0, f.finish - t.charge)
    core.rest(c)
  end

  function core.evict(t, reason)
    core.leave_line(t)
    local wait = core.rounded(core.newcomer_wait(core.class(t.rank)))
    core.tell(t, '5 ' .. t.id .. ' ' .. reason .. ' ' .. format('%d', wait))
  end

  -- ---------------------------------------------------------------- the forecast (policy/forecast.py)

  -- A waiter was granted, whose start tag lay so far ahead of the virtual time.
  function core.moved(c, advance)
    local p = core.pace(c)
    p.seen = min(p.seen + 1, 64)
    p.gap = p.gap + (max(0, now - p.last) - p.gap) / p.seen
    p.advance = p.advance + (max(0, advance) - p.advance) / p.seen
    p.last, p.changed = now, true
  end

  function core.judge(c, predicted, correction, waited)
    local p = core.pace(c)
    if waited * correction > predicted * p.correction then
      p.correction = min(p.correction * 1.05, 4)
    else
      p.correction = max(p.correction / 1.05, 1 / 4)
    end
  end

  function core.gap(c)
    local p = core.pace(c)
    if p.seen == 0 then
      return nil
    end
    local open_for = now - p.last
    if c.queued > 0 and open_for > p.gap then
      return p.gap + (open_for - p.gap) / p.seen
    end
    return p.gap
  end

  function core.predict(c, ahead, position, distance)
    local gap = core.gap(c)
    if gap then
      local p, grants = c.pace, ahead + 1
      if distance > grants * p.advance and p.advance ~= 0 then
        grants = distance / p.advance
      end
      return grants * gap * p.correction
    end
    local least
    for rank = 0, pool.ranks - 1 do
      local other = core.gap(core.class(rank))
      if other and (not least or other < least) then
        least = other
      end
    end
    return least and least * position
  end

  -- Position and predicted wait of a ticket that waits.
  function core.place(t)
    local ahead, position = core.before(t)
    local c = core.class(t.rank)
    return position, core.predict(c, ahead, position, t.start - c.virtual)
  end

  -- What a newcomer of this class would wait: for its Retry-After.
  function core.newcomer_wait(c)
    local position = 1
    for rank = 0, c.rank do
      local above = core.class(rank)
      position = position + above.queued + above.lobby
    end
    return core.predict(c, c.queued + c.lobby, position, 0)
  end

  function core.rounded(number)
    return number and floor(number + 0.5) or -1
  end

  -- ---------------------------------------------------------------- the pump (core.py, policy/shares.py)

  function core.next_class()
    local by_rank, by_credit, overdue
    local overdue_since = INF
    for _, c in ipairs(core.contending()) do
      local head = core.head(c)
      if head and not core.held_back(c, head.slots) then
        if c.max_delay then
          local arrival = core.oldest(c).arrival
          if now - arrival >= c.max_delay and arrival < overdue_since then
            overdue, overdue_since = c, arrival
          end
        end
        if not by_credit and c.guaranteed > 0 and core.credit(c) >= head.slots * 1e6 then
          by_credit = c
        end
        by_rank = by_rank or c
      end
    end
    return overdue or by_credit or by_rank
  end

  -- A process whose lease has run out may be gone: nothing is granted to it until it has renewed.
  function core.alive(name)
    if name == me then
      return true
    end
    if pool.leases[name] == nil then
      local ends = call('ZSCORE', LEASE, name)
      pool.leases[name] = ends and tonumber(ends) > now or false
    end
    return pool.leases[name]
  end

  -- Let the head of a class run.
  function core.grant(c, t)
    local waited = now - t.arrival
    if t.position > 0 then
      core.moved(c, t.start - c.virtual)
      if t.correction > 0 and t.predicted and waited > 0 then
        core.judge(c, t.predicted, t.correction, waited)
      end
    end
    if c.codel_target then
      local p = core.pace(c)
      p.shortest, p.changed = min(p.shortest, waited), true
    end
    core.spend(c, t.slots)
    core.step_out(c, t)
    core.start(c, t)
    core.tell(t, '1 ' .. t.id .. ' ' .. format('%d %d %d', t.epoch, t.grant, t.in_use))
  end

  -- Grant whatever may run, and drop those whose deadline had passed when their turn came.
  function core.pump()
    while pool.queued > 0 and pool.in_use < pool.limit and pool.paused == 0 and pool.moves > 0 do
      local c = core.next_class()
      if not c then
        break
      end
      local t = c.head
      if t.expires <= now then
        core.evict(t, t.expires_as)
      elseif not core.alive(t.process) then
        core.evict(t, 'evicted-disconnect')
      elseif pool.in_use > 0 and pool.in_use + t.slots > pool.limit then
        break -- Nothing smaller overtakes a head that does not fit; one wider than the whole limit runs alone.
      else
        core.grant(c, t)
      end
      pool.moves = pool.moves - 1
    end
  end

  -- The first of the lobby, in the line's order, for whose class there is room in the line.
  function core.next_of_lobby()
    local most = core.bounds().max_queue_size
    if most > 0 and pool.queued >= most then
      return nil
    end
    for rank = 0, pool.ranks - 1 do
      local c = core.class(rank)
      if c.lobby > 0 and not (c.max_queued and c.queued >= c.max_queued) then
        return core.head_of_lobby(c)
      end
    end
  end

  -- Pump, and let the lobby move up.
  function core.settle()
    core.pump()
    while pool.lobby > 0 and pool.moves > 0 do
      local t = core.next_of_lobby()
      if not t then
        break
      end
      local c = core.class(t.rank)
      core.leave_lobby(c, t)
      core.enter(c, t)
      core.tell(t, '4 ' .. t.id)
      pool.moves = pool.moves - 1
      core.pump()
    end
  end

  -- ---------------------------------------------------------------- who has to wait or go

  -- Take in a newcomer that cannot run at once for all the pool knows.
  function core.queue(c, t, f, newest, may_wait)
    -- The newcomer stands in line before the bounds are looked at: whoever can run at once is never refused for a full
    -- line, and the bounds see the line as it will be.
    core.enter(c, t)
    -- Whoever waited before could not run, so without a free slot there is nothing to pump for.
    core.pump()
    if t.state == 'running' then
      core.settle()
      return core.present(t)
    end
    local reason = may_wait == '0' and 'rejected-busy' or core.find_room(c, t, f)
    if reason then
      local _, position = core.before(t)
      core.leave_line(t)
      f.newest = newest
      core.settle()
      return core.refusal(c, reason, position)
    end
    if pool.lobby > 0 and t.state == 'line' and core.overtakes_lobby(t) then
      core.park(c, t)
    end
    t.position, t.predicted = core.place(t)
    local p = core.pace(c)
    t.correction = p.seen > 0 and p.correction or 0
    core.settle()
    -- Pushing someone out may have removed a wide head that had stopped the pump: then it runs after all.
    return core.present(t, t.position, t.predicted)
  end

  -- The bounds of the line, as far as the rules say any.
  function core.bounds()
    local bounds = pool.bounds
    if not bounds then
      bounds = { max_queue_size = 0, max_lobby_size = 0 }
      for name, value in string.gmatch(pool.rules[pool.first_rules - 2] or '', '(%S+)=(%S+)') do
        bounds[name] = tonumber(value)
      end
      pool.bounds = bounds
    end
    return bounds
  end

  -- Enforce the bounds on a newcomer that stands in line; the reason to refuse it, or nil.
  function core.find_room(c, t, f)
    local bounds = core.bounds()
    if bounds.max_queued_per_tenant and f.waiting > bounds.max_queued_per_tenant then
      return 'rejected-tenant-full'
    end
    if bounds.refuse_hopeless and t.expires < INF then
      local _, predicted = core.place(t)
      if predicted and now + predicted > t.expires then
        return 'rejected-hopeless'
      end
    end
    local lowest
    if c.max_queued and c.queued > c.max_queued then
      lowest = c
    elseif bounds.max_queue_size > 0 and pool.queued > bounds.max_queue_size then
      lowest = core.contending()[#core.contending()]
    else
      return nil
    end
    local worst = core.at(lowest, lowest.from, lowest.to, true)
    if not worst then
      return nil -- Keys were lost: the line is not as long as it seemed.
    elseif worst.rank > t.rank then
      core.evict(worst, 'evicted-priority')
    elseif worst.rank == t.rank and t.start < worst.start and core.flow(c, worst.key).waiting > f.waiting then
      core.evict(worst, 'evicted-fairness')
    elseif bounds.block and pool.lobby < bounds.max_lobby_size then
      core.park(c, t)
    else
      return 'rejected-queue-full'
    end
  end

  -- Whether someone in the lobby stands before this newcomer, and could have the place it found in line.
  function core.overtakes_lobby(t)
    for rank = 0, t.rank do
      local c = core.class(rank)
      if c.lobby > 0 then
        if rank == t.rank then
          local first = core.head_of_lobby(c)
          return first and first.start <= t.start
        end
        if not c.max_queued or c.queued < c.max_queued then
          return true
        end
      end
    end
  end

  function core.refusal(c, reason, position)
    return { REFUSED, reason, position, core.rounded(core.newcomer_wait(c)) }
  end

  function core.withdraw(id, reason)
    local t = core.live(id)
    if not t then
      return UNKNOWN
    end
    pool.subject = t
    if t.state == 'running' then
      core.finish(t, 0)
      core.tell(t, '8 ' .. id)
    else
      core.evict(t, reason)
    end
    core.settle()
    return DONE
  end

  -- Someone knows a fence from the future: the server has lost what came after, and would issue fences twice. A new
  -- epoch begins.
  function core.heard_of(epoch, grant)
    if epoch > pool.epoch or epoch == pool.epoch and grant > pool.fence then
      pool.epoch = max(pool.epoch + 1, epoch + 1, now)
    end
  end

  -- Time has passed: evict who has waited too long, and start what a start rate held back.
  function core.expire()
    for _, found in ipairs(call('ZRANGEBYSCORE', DUE, '-inf', pool.time, 'LIMIT', '0', pool.moves)) do
      local t = core.live(sub(found, 17))
      if t and t.state ~= 'running' then
        core.evict(t, t.expires_as)
        pool.moves = pool.moves - 1
      else
        call('ZREM', DUE, found)
      end
    end
    for _, c in ipairs(core.contending()) do
      if c.codel_target then
        core.shed(c)
      end
    end
    if pool.closed == 1 then
      core.drain()
    end
    core.settle()
  end

  -- Evict the too old of a class whose line is a standing one.
  function core.shed(c)
    local p = core.pace(c)
    if now >= p.interval_end then
      p.overloaded = p.shortest > c.codel_target and 1 or 0
      p.shortest, p.interval_end, p.changed = INF, now + c.codel_interval, true
    end
    while p.overloaded == 1 and c.queued > 0 and pool.moves > 0 do
      local t = core.oldest(c)
      if not t or now < t.arrival + 2 * c.codel_target then
        break
      end
      core.evict(t, 'evicted-codel')
      pool.moves = pool.moves - 1
    end
  end

  -- When `expire` has something to do by time alone; -1 when nothing is due.
  function core.next_event()
    if pool.moves <= 0 then
      return now
    end
    local due = tonumber(call('ZRANGE', DUE, '0', '0', 'WITHSCORES')[2] or INF)
    for _, c in ipairs(core.contending()) do
      if c.start_interval and not c.paused and pool.paused == 0 then
        local start_due = core.pace(c).next_start - c.start_allowance
        due = start_due > now and min(due, start_due) or due
      end
      if c.codel_target then
        local p = core.pace(c)
        due = min(due, p.interval_end)
        local t = p.overloaded == 1 and core.oldest(c)
        due = t and min(due, t.arrival + 2 * c.codel_target) or due
      end
    end
    return due < INF and math.ceil(due) or -1
  end

  function core.never(number)
    return number < INF and format('%.17g', number) or 'never'
  end

  -- Where the tag of a tenant that has left stands in `debt`.
  function core.debt(c, f)
    return format('%d:%016d:', c.rank, f.finish) .. sub(f.key, 3)
  end

  -- Forget the smallest debts of absent tenants.
  function core.forgive(c, most)
    local forgiven = call('ZRANGEBYLEX', DEBT, '[' .. c.rank .. ':', '(' .. c.rank .. ';', 'LIMIT', '0', most)
    if #forgiven > 0 then
      local keys = {}
      for i, debt in ipairs(forgiven) do
        keys[i] = c.rank .. sub(debt, 19)
      end
      core.write('HDEL', F, keys)
      core.write('ZREM', DEBT, forgiven)
    end
    c.debts = c.debts - #forgiven
  end
end

-- ------------------------------------------------------------------ what is rarely needed, made on demand

local function rarely()
  -- The counters and the keys differ: keys were lost. Believe the keys.
  function core.recount(c)
    local queued = call('ZLEXCOUNT', W, c.from, c.to)
    local lobby = call('ZLEXCOUNT', W, '[lobby' .. c.rank .. ':', '(lobby' .. c.rank .. ';')
    if queued ~= c.queued or lobby ~= c.lobby then
      pool.queued, pool.lobby = pool.queued + queued - c.queued, pool.lobby + lobby - c.lobby
      c.queued, c.lobby, c.head, pool.contenders = queued, lobby, nil, nil
      if queued == 0 then
        core.emptied(c)
      end
    end
  end

  -- -------------------------------------------------------------- steering

  function core.resize(limit)
    pool.limit = tonumber(limit)
    for rank = 0, pool.ranks - 1 do
      core.fit(core.class(rank))
    end
    core.settle()
    return DONE
  end

  function core.pause(rank)
    if rank == '-' then
      pool.paused = 1
    else
      core.class(tonumber(rank)).paused = true
    end
    core.settle()
    return DONE
  end

  function core.resume(rank)
    if rank == '-' then
      pool.paused = 0
    else
      core.class(tonumber(rank)).paused = false
    end
    core.settle()
    return DONE
  end

  -- Evict all who wait; of a long line a portion with every call.
  function core.drain()
    for _, found in ipairs(call('ZRANGE', W, '0', pool.moves - 1)) do
      local t = core.live(match(found, ':%d+:%d+:(.*)$'))
      if t then
        core.evict(t, 'evicted-draining')
        pool.moves = pool.moves - 1
      else
        call('ZREM', W, found)
        core.recount(core.class(tonumber(match(found, '^%l+(%d)'))))
      end
    end
  end

  function core.close()
    pool.closed = 1
    core.drain()
    return DONE
  end

  function core.reopen()
    pool.closed = 0
    return DONE
  end

  -- -------------------------------------------------------------- processes and their leases

  -- Take everything a process has, a portion at a time; true when nothing is left.
  function core.strip(name, portion, reason)
    core.flush_tickets()
    local ids = call('ZRANGEBYLEX', OWN, '[' .. name .. ':', '(' .. name .. ';', 'LIMIT', '0', portion)
    for _, id in ipairs(ids) do
      local t = core.ticket(id)
      if not t then
        call('ZREM', OWN, id)
      elseif t.state == 'running' then
        core.finish(t, 0)
        core.tell(t, '8 ' .. id)
      elseif t.state ~= 'gone' then
        core.evict(t, reason)
      end
    end
    if #ids < portion then
      core.process(name).gone = true
      call('ZREM', LEASE, name)
      return true
    end
    return false
  end

  -- Processes whose lease has run out are dead: their slots go to others, their waiters leave.
  function core.reap()
    local portion = 200
    for _, name in ipairs(call('ZRANGEBYSCORE', LEASE, '-inf', pool.time, 'LIMIT', '0', '8')) do
      if name ~= me and portion > 0 then
        local p = core.process(name)
        local size = p.running + p.waiting
        core.strip(name, portion, 'evicted-disconnect')
        portion = portion - size
      end
    end
    pool.reap_at = tonumber(call('ZRANGE', LEASE, '0', '0', 'WITHSCORES')[2] or 0)
  end

  function core.renew(ends)
    call('ZADD', LEASE, ends, me)
    for _, key in ipairs(KEYS) do
      call('EXPIRE', key, '86400')
    end
    local p = core.process(me)
    p.beats, p.gone = true, nil
    pool.reap_at = pool.reap_at == 0 and ends or min(pool.reap_at, ends)
  end

  function core.beat(ttl, digest)
    -- What this process believes to have, and what it has: as both stood before this call.
    if digest ~= '-' and tonumber(digest) ~= core.process(me).before then
      pool.resync = true
    end
    core.renew(now + tonumber(ttl))
    pool.beating = true
    return DONE
  end

  -- Goodbye: everything of this process is given back.
  function core.leave()
    local all = core.strip(me, 1000, 'evicted-draining')
    core.settle()
    return all and DONE or 9 -- MORE
  end

  -- After a failover, or when it was taken for dead: what a process really holds counts, also above the limit.
  function core.hold(id, fence, key, slots, charge)
    local epoch, grant = match(fence, '^(%d+):(%d+)$')
    core.heard_of(tonumber(epoch), tonumber(grant))
    local t = core.live(id)
    if t and t.state == 'running' then
      return core.present(t)
    end
    local c = core.class(byte(key) - 48)
    if not t then
      core.flush_tickets() -- In case it left during this very call.
      t = { id = id, process = sub(id, 1, 16), key = key, rank = c.rank, slots = tonumber(slots) }
      pool.tickets[id] = t
      t.start = core.arrive(c, core.flow(c, key), tonumber(charge))
    elseif t.state == 'lobby' then -- Its grant was lost.
      core.leave_lobby(c, t)
    else
      core.step_out(c, t)
    end
    core.take(c, t)
    core.settle()
    return core.present(t)
  end

  -- -------------------------------------------------------------- the audit

  -- Slots in use change only together with an entry in `d`, and all other keys follow from the entries. Each beat walks
  -- a portion along `own`, puts back what an entry should have elsewhere, and counts again; a walk that has reached the
  -- end corrects the counters, should keys have been lost. What changes behind the walk's back meanwhile is counted as
  -- well. `pool.audit` is the walk: the last id seen, slots and tickets by class.

  function core.load_audit(text)
    pool.audit = { cursor = match(text, '^%S+') }
    for number in string.gmatch(text, ' (%-?%d+)') do
      pool.audit[#pool.audit + 1] = tonumber(number)
    end
  end

  function core.count(walk, t, sign)
    local i = 2 * t.rank + 1
    walk[i] = (walk[i] or 0) + sign * t.slots
    walk[i + 1] = (walk[i + 1] or 0) + sign
  end

  -- Byte by byte, as in `own`; Lua's own comparison goes by the server's locale.
  function core.sorts_before(a, b)
    for i = 1, min(#a, #b) do
      local x, y = byte(a, i), byte(b, i)
      if x ~= y then
        return x < y
      end
    end
    return #a < #b
  end

  function core.walked(t)
    if (t.was == 'running' or t.state == 'running') and not core.sorts_before(pool.audit.cursor, t.id) then
      core.count(pool.audit, t, t.state == 'running' and 1 or -1)
    end
  end

  function core.recheck()
    local walk = pool.audit or {}
    if call('ZCARD', OWN) < call('HLEN', D) then
      local owned = {}
      for i, id in ipairs(call('HKEYS', D)) do
        owned[2 * i - 1], owned[2 * i] = '0', id
      end
      core.write('ZADD', OWN, owned)
    end
    local ids = call('ZRANGEBYLEX', OWN, walk.cursor and '(' .. walk.cursor or '-', '+', 'LIMIT', '0', '250')
    local records = #ids > 0 and call('HMGET', D, unpack(ids)) or {}
    local line, old, due = {}, {}, {}
    for i, id in ipairs(ids) do
      local t = records[i] and core.decode(id, records[i])
      if not t then
        call('ZREM', OWN, id)
      elseif t.state == 'running' then
        core.count(walk, t, 1)
      else
        line[#line + 1], line[#line + 2] = '0', t.member
        if t.by_age then
          old[#old + 1], old[#old + 2] = '0', core.old_member(t)
        end
        if t.expires < INF then
          due[#due + 1], due[#due + 2] = format('%d', t.expires), format('%015d:%s', t.number, id)
        end
      end
    end
    core.write('ZADD', W, line)
    core.write('ZADD', OLD, old)
    core.write('ZADD', DUE, due)
    if #ids == 250 then
      walk.cursor = ids[250]
      pool.audit = walk
      return 0
    end
    if pool.audit then
      pool.audit = nil
      call('HDEL', ST, 'audit')
    end
    if call('EXISTS', D) == 0 then
      call('DEL', OWN, W, OLD, DUE, F, DEBT) -- Nothing lives: nothing may be left, whatever has happened.
    end
    local wrong = 0
    for rank = 0, pool.ranks - 1 do
      local c, slots, running = core.class(rank), walk[2 * rank + 1] or 0, walk[2 * rank + 2] or 0
      wrong = wrong + math.abs(c.held - slots)
      pool.in_use, c.held = pool.in_use + slots - c.held, slots
      pool.running, c.running = pool.running + running - c.running, running
      core.recount(c)
      core.rest(c)
    end
    return wrong
  end

  function core.save_audit()
    local numbers = { pool.audit.cursor }
    for i = 1, 2 * pool.ranks do
      numbers[i + 1] = pool.audit[i] or 0
    end
    call('HSET', ST, 'audit', table.concat(numbers, ' '))
  end

  -- -------------------------------------------------------------- questions

  function core.position(id)
    local t = core.live(id)
    if not t then
      return UNKNOWN
    elseif t.state == 'running' then
      return { 10, 0, 0, 'nothing', t.key, -1 }
    end
    local position, predicted = core.place(t)
    local c, binding = core.class(t.rank), nil
    if t.state == 'lobby' then
      binding = 'line-full'
    elseif pool.paused == 0 and not core.held_back(c, t.slots) and core.head(c) ~= t then
      binding = 'line-order'
    else
      binding = core.binding(c, t)
    end
    return { 10, position, core.rounded(predicted), binding, t.key, now - t.arrival }
  end

  -- What keeps the head of a class from running now.
  function core.binding(c, head)
    if pool.paused == 1 then
      return 'paused'
    end
    return core.held_back(c, head.slots) or (core.next_class() == c and 'pool-limit' or 'higher-class')
  end

  -- A page of the tickets of this process; whoever has seen all pages knows what it has here.
  function core.page(after)
    local from = after == '' and '[' .. me .. ':' or '(' .. after
    local ids = call('ZRANGEBYLEX', OWN, from, '(' .. me .. ';', 'LIMIT', '0', '1000')
    if after == '' and #ids < 1000 then
      -- All of them at once: a good time to see whether the process's own counts are right.
      local p = core.process(me)
      p.slots, p.running, p.waiting, p.digest = 0, 0, 0, 0
      local records = #ids > 0 and call('HMGET', D, unpack(ids)) or {}
      for i, id in ipairs(ids) do
        if records[i] then
          local t = core.decode(id, records[i])
          core.account(p, t, t.state, 1)
        end
      end
    end
    return { 11, #ids == 1000 and ids[1000] or '', ids }
  end

  function core.look_at_class(c)
    local head = core.head(c)
    local oldest = head
    if head and (c.max_delay or c.codel_target) then
      oldest = core.oldest(c)
    elseif head then -- Among the next to go: a waiter older than these stands behind many.
      for _, found in ipairs(call('ZRANGEBYLEX', W, c.from, c.to, 'LIMIT', '0', '100')) do
        local t = core.live(match(found, ':%d+:%d+:(.*)$'))
        oldest = t and t.number < oldest.number and t or oldest
      end
    end
    return {
      c.held, c.running, c.queued, c.lobby, c.cap, c.paused and 1 or 0, core.credit(c), head and now - oldest.arrival or 0,
      core.rounded(core.newcomer_wait(c)), head and core.binding(c, head) or '',
    }
  end

  -- The busiest tenants; of very many, among those that are found first.
  function core.busiest(most)
    local raw
    if call('HLEN', F) <= 1000 then
      raw = call('HGETALL', F)
    else
      raw = call('HSCAN', F, '0', 'COUNT', '1000')[2]
    end
    local found = {}
    for i = 1, #raw, 2 do
      local waiting, running = match(raw[i + 1], '^%d+ %d+ (%d+) (%d+)$')
      waiting, running = tonumber(waiting), tonumber(running)
      if waiting + running > 0 then
        found[#found + 1] = { byte(raw[i]) - 48, sub(raw[i], 3), running, waiting }
      end
    end
    table.sort(found, function(a, b)
      local x, y = a[3] + a[4], b[3] + b[4]
      return x > y or x == y and core.sorts_before(a[2], b[2])
    end)
    for i = #found, most + 1, -1 do
      found[i] = nil
    end
    return found
  end

  function core.look_at_all(most)
    local of_classes, of_processes, drain = {}, {}, nil
    for rank = 0, pool.ranks - 1 do
      of_classes[rank + 1] = core.look_at_class(core.class(rank))
    end
    for _, c in ipairs(core.contending()) do
      local gap = core.gap(c)
      if gap and gap > 0 then
        drain = (drain or 0) + 1e6 / gap
      end
    end
    local ends = call('ZRANGE', LEASE, '0', '999', 'WITHSCORES')
    for i = 1, #ends, 2 do
      local p = core.process(ends[i])
      of_processes[#of_processes + 1] = { ends[i], p.slots, p.running, p.waiting, tonumber(ends[i + 1]) - now, p.since }
    end
    return {
      12, pool.paused, pool.closed, drain and format('%.17g', drain) or '', of_classes, core.busiest(tonumber(most)),
      call('HLEN', F) - call('ZCARD', DEBT), of_processes,
    }
  end

  -- Answered when all else is written.
  function core.look(most)
    pool.asked = true
    return { 'look_at_all', most }
  end

  function core.mine(after)
    pool.asked = true
    return { 'page', after }
  end
end

-- ------------------------------------------------------------------ the step

setmetatable(core, {
  __index = function(_, name)
    if not rawget(core, 'settle') then
      waiting()
      if rawget(core, name) then
        return core[name]
      end
    end
    setmetatable(core, nil)
    rarely()
    return core[name]
  end,
})

-- Verbs and how many words they take, their own among them.
local ARITY = {
  offer = 8, -- id, class:tenant, slots, charge, patience or -, reason when it ends, 1 if it may wait
  release = 4, -- id, fence, difference of charges
  withdraw = 3, -- id, reason
  hold = 6, -- id, fence, class:tenant, slots, charge
  position = 2, -- id
  beat = 3, -- time to live, digest or -
  look = 2, -- how many tenants
  mine = 2, -- id to go on after
  resize = 2, -- limit
  pause = 2, -- class or -
  resume = 2, -- class or -
  close = 1,
  reopen = 1,
  leave = 1,
}

local first_op = 9 + tonumber(ARGV[8])

-- What the operations name is read in two calls.
local ids, keys = {}, {}
do
  local i = first_op
  while i <= #ARGV do
    local verb = ARGV[i]
    local arity = ARITY[verb]
    if not arity or i + arity - 1 > #ARGV then
      return redis.error_reply('ERR not an operation of a pool: ' .. sub(verb, 1, 60))
    end
    pool.needed = pool.needed or verb ~= 'offer'
    if verb == 'offer' or verb == 'release' then
      local id = ARGV[i + 1]
      if pool.tickets[id] == nil then
        pool.tickets[id] = false
        ids[#ids + 1] = id
      end
      if verb == 'offer' and pool.read_ahead[ARGV[i + 2]] == nil then
        pool.read_ahead[ARGV[i + 2]] = false
        keys[#keys + 1] = ARGV[i + 2]
      end
    end
    i = i + arity
  end
end

do
  local stored = call('HMGET', ST, 'pool', 'audit')
  if stored[1] then
    local in_use, limit, queued, lobby, running, paused, closed, time, epoch, fence, arrivals, starts, ranks, version,
      reap_at = match(
        stored[1],
        '^in_use=(%S+) limit=(%S+) queued=(%S+) lobby=(%S+) running=(%S+) paused=(%S+) closed=(%S+) now=(%S+) '
          .. 'epoch=(%S+) fence=(%S+) arrivals=(%S+) starts=(%S+) ranks=(%S+) version=(%S+) reap_at=(%S+)$'
      )
    pool.in_use, pool.limit, pool.running = tonumber(in_use), tonumber(limit), tonumber(running)
    pool.queued, pool.lobby = tonumber(queued), tonumber(lobby)
    pool.paused, pool.closed = tonumber(paused), tonumber(closed)
    pool.epoch, pool.fence, pool.arrivals, now = tonumber(epoch), tonumber(fence), tonumber(arrivals), tonumber(time)
    pool.starts, pool.ranks, pool.version = tonumber(starts), tonumber(ranks), tonumber(version)
    pool.reap_at = tonumber(reap_at)
  else
    pool.in_use, pool.limit, pool.running, pool.queued, pool.lobby, pool.paused, pool.closed = 0, 0, 0, 0, 0, 0, 0
    pool.epoch, pool.fence, pool.arrivals, pool.starts, now = 0, 0, 0, 0, 0
    pool.ranks, pool.version, pool.reap_at = 0, 0, 0
    pool.is_new = true
  end
  pool.was_empty = pool.queued + pool.lobby + pool.running == 0
  pool.no_tickets = pool.was_empty

  -- Clocks are set back and replicas' clocks differ: then time stands still until it has caught up.
  if ARGV[2] == '-' then
    local time = call('TIME')
    now = max(now, time[1] * 1e6 + time[2])
  else
    now = max(now, tonumber(ARGV[2]))
  end
  pool.time = format('%d', now)
  if pool.is_new then
    pool.epoch = max(1, now)
  end

  -- The rules come with every call, so a promoted empty replica knows them. The newest win, whoever calls.
  local version = tonumber(ARGV[6])
  pool.rules, pool.first_rules, pool.known = ARGV, 9, first_op - 9
  if version > pool.version then
    pool.version, pool.new_rules = version, table.concat(ARGV, '\n', 7, first_op - 1)
    -- Who brings the same rules has only been started again: what was steered or learnt since stays.
    if pool.new_rules ~= call('HGET', ST, 'rules') then
      pool.limit = tonumber(match(ARGV[7], '^limit=(%d+)'))
    end
    pool.ranks = max(pool.ranks, first_op - 9)
  elseif version < pool.version then
    pool.rules, pool.first_rules = {}, 3
    for line in string.gmatch((call('HGET', ST, 'rules') or '') .. '\n', '([^\n]*)\n') do
      pool.rules[#pool.rules + 1] = line
    end
    pool.known = #pool.rules - 2
  end
  if stored[2] then
    core.load_audit(stored[2])
  end
end

if #ids > 0 then
  for i, record in ipairs(call('HMGET', D, unpack(ids))) do
    if record then
      local t = core.decode(ids[i], record)
      pool.tickets[ids[i]] = t
      if pool.read_ahead[t.key] == nil then
        pool.read_ahead[t.key] = false
        keys[#keys + 1] = t.key
      end
    end
  end
end
if #keys > 0 then
  for i, raw in ipairs(call('HMGET', F, unpack(keys))) do
    pool.read_ahead[keys[i]] = raw
  end
end

do
  local mine, epoch = core.process(me), tonumber(ARGV[4])
  mine.before = mine.digest
  if epoch > 0 then
    core.heard_of(epoch, tonumber(ARGV[5]))
    -- The caller knows another pool, or was taken for dead.
    pool.resync = epoch ~= pool.epoch or not mine.raw
  end
end

if pool.needed then
  call('HDEL', D, '-')
end
if pool.reap_at > 0 and now >= pool.reap_at then
  core.reap()
end
if pool.queued + pool.lobby > 0 then
  core.expire()
end

local answers, n = {}, 0
do
  local i = first_op
  while i <= #ARGV do
    local verb = ARGV[i]
    pool.subject = nil
    n = n + 1
    answers[n] = core[verb](unpack(ARGV, i + 1, i + ARITY[verb] - 1))
    i = i + ARITY[verb]
  end
end

core.flush_tickets()
core.flush_flows()
local repaired = pool.beating and core.recheck() or 0
if pool.asked then
  for i = 1, n do
    local answer = answers[i]
    if type(answer) == 'table' and type(answer[1]) == 'string' then
      answers[i] = core[answer[1]](answer[2])
    end
  end
end
core.flush_processes()
local due = pool.queued + pool.lobby > 0 and core.next_event() or -1
core.flush_pool()
if pool.audit then
  core.save_audit()
end

for name, lines in pairs(pool.messages) do
  call(ARGV[3], sub(ST, 1, -3) .. 'to:' .. name, table.concat(lines, '\n'))
end

return {
  now, pool.epoch, pool.fence, pool.in_use, pool.limit, pool.queued, pool.lobby, due, pool.resync and 1 or 0,
  pool.version, repaired, answers, pool.told,
}
