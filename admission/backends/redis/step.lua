-- One step of a pool that many processes share: a batch of operations, each of which ends in a pump.
--
-- The rules are those of `core.py`, function by function and under the same names; a differential test holds the two to
-- the same decisions. What only a shared pool has stands in sections of its own: leases, fences, holds, the audit.
--
-- KEYS, all in one cluster slot. Everything is readable text; times are microseconds, never going back; tags are
-- thousandths of a cost unit and credits millionths of a slot, as in Python.
--
--   st     HASH  the pool: `in_use`, `limit`, `queued` … by name; per class `class<rank>` and `pace<rank>`, see `class()`
--   d      HASH  id -> a live ticket, see `decode()`
--   own    ZSET  ids in lexical order: they begin with their process, so a dead one's tickets are found without a scan
--   lease  ZSET  process -> when its lease ends
--   proc   HASH  process -> slots, running, waiting, digest of its ids, since when
--   w      ZSET  who waits, lexical: place, class, start tag, arrival number, id. So ZRANGE shows the order of service,
--                the whole line before the lobby, and ZRANK is a position
--   old    ZSET  who waits in classes whose rules ask for the oldest, lexical: class, arrival number, time, id
--   due    ZSET  arrival number and id -> when that waiter's patience ends
--   f      HASH  class:tenant -> finish tag, newest start tag, waiting, running
--   debt   ZSET  tenants that have left with a tag ahead of the class, lexical: class, tag, tenant; to forget the smallest
--
-- ARGV[1] process, injected time or -, version of the rules, P or S (how to publish), epoch and fence the caller saw last
-- ARGV[2] the rules, see `SharedRules`        ARGV[3…] operations, see `parse()`
--
-- Redis looks for free memory before a script's first write only, so a step is done whole or not at all; and one that
-- only gives back begins with a deletion, which is allowed without free memory.

local ST, D, OWN, LEASE, PROC, W, OLD, DUE, F, DEBT = unpack(KEYS)
local call = redis.call
local byte, format, gmatch, match, sub = string.byte, string.format, string.gmatch, string.match, string.sub
local floor, huge, max, min = math.floor, math.huge, math.max, math.min

local MICRO = 1000000 -- one slot's worth of credit
local IDLE_TAGS = 1024 -- debts of absent tenants a class remembers
local MEMORY, STEP, MOST_CORRECTION = 64, 1.05, 4.0 -- of the forecast
local PORTION = 1000 -- tickets one call moves at most besides those its operations name; the next call goes on
local REAPED, AUDITED = 200, 250 -- tickets of dead processes, and tickets counted again, per call
local JOIN_TTL = 15 * MICRO -- lease of a process that asks for slots before its first beat
local KEPT = 86400 -- seconds after which the keys of an abandoned pool vanish
local MODULUS = 2 ^ 52 -- of digests

local LINE, LOBBY, RUNNING, GONE = 'line', 'lobby', 'running', 'gone' -- where a ticket is
local GRANTED, WAITING, PARKED, REFUSED, DONE, STALE, UNKNOWN, MORE = 1, 2, 3, 5, 6, 7, 8, 9 -- answers, as `Kind`
local PLACE, PAGE, LOOK = 10, 11, 12

-- ------------------------------------------------------------------ what is kept

local me, injected, version, publish, seen_epoch, seen_fence = match(ARGV[1], '^(%S+) (%S+) (%d+) (%u) (%d+) (%d+)$')
version, seen_epoch, seen_fence = tonumber(version), tonumber(seen_epoch), tonumber(seen_fence)

local FIELDS = {
  'now', 'epoch', 'fence', 'arrivals', 'in_use', 'limit', 'queued', 'lobby', 'running', 'paused', 'closed', 'ranks',
  'version', 'reap_at', 'rules', 'audit',
}
local was = call('HMGET', ST, unpack(FIELDS)) -- as stored, to write only what has changed
local pool = {}
for i = 1, 14 do
  pool[FIELDS[i]] = tonumber(was[i] or 0)
end
pool.rules, pool.audit = was[15] or '', was[16] or ''

local now
if injected == '-' then
  local time = call('TIME')
  now = time[1] * MICRO + time[2]
else
  now = tonumber(injected)
end
-- Clocks are set back and replicas' clocks differ: time stands still until it has caught up.
now = max(now, pool.now)
pool.now = now

-- The rules come with every call, so a promoted empty replica knows them. The newest win, whoever calls.
if version > pool.version then
  pool.rules, pool.version = ARGV[2], version
  pool.limit = tonumber(match(ARGV[2], '^(%d+)'))
end
if pool.epoch == 0 then
  pool.epoch = max(1, now)
end

local rules = {} -- of the pool; of class r in rules[r]
do
  local rank = 0
  local head = match(pool.rules, '^[^\n]*')
  local _, line, block, lobby, tenant, hopeless = match(head, '^(%d+) (%d+) ([01]) (%d+) (%S+) ([01])$')
  rules.most_queued, rules.most_in_lobby, rules.most_per_tenant = tonumber(line), tonumber(lobby), tonumber(tenant)
  rules.block, rules.refuse_hopeless = block == '1', hopeless == '1'
  for class in gmatch(pool.rules, '\n([^\n]*)') do
    rules[rank] = class
    rank = rank + 1
  end
  pool.ranks = max(pool.ranks, rank)
end

local function whole(number)
  return format('%d', number)
end

-- Numbers that need not be whole, to the last bit.
local function exact(number)
  return format('%.17g', number)
end

-- Infinite times are stored as -1.
local function stored(number)
  return (number == huge) and '-1' or format('%.17g', number)
end

local function loaded(text)
  local number = tonumber(text)
  return number < 0 and huge or number
end

local classes = {} -- by rank, those this call has looked at

-- What follows from a class's rules and the limit.
local function fit(c)
  -- The epsilon: 0.1 x 30 is 3.0000000000000004 and 0.7 x 10 is 6.999...; both mean what they say.
  c.cap = max(1, floor(c.ceiling * pool.limit + 1e-9))
  c.most_credit = (pool.limit + 1) * MICRO
  c.credit = min(c.credit, c.most_credit)
  c.widest = (c.ceiling < 1 and not c.exempt) and c.cap or huge
end

local function class(rank)
  local c = classes[rank]
  if c then
    return c
  end
  local raw = call('HMGET', ST, 'class' .. rank, 'pace' .. rank)
  local a = { match(raw[1] or '0 0 0 0 0 0 0 0', '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$') }
  local p = { match(raw[2] or '0 0 0 -1 1 -1 -1 0 0', '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$') }
  -- A class some process knows of and the newest rules do not is a plain one until it is empty.
  local r = { match(rules[rank] or '0 1 - - 0 - - - 0', '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) ([01])$') }
  c = {
    rank = rank,
    -- class<rank>: slots held, running tickets, in line, in the lobby, credit, virtual time, paused, debts kept
    raw = raw[1],
    held = tonumber(a[1]),
    running = tonumber(a[2]),
    queued = tonumber(a[3]),
    lobby = tonumber(a[4]),
    credit = tonumber(a[5]),
    virtual = tonumber(a[6]),
    paused = a[7] == '1',
    debts = tonumber(a[8]),
    period = 0, -- busy periods that have ended during this call
    -- pace<rank>: gap, advance, grants seen, last grant, correction; CoDel: shortest wait, end of the interval,
    -- overloaded; when the start rate's bucket is full again
    gap = tonumber(p[1]),
    advance = tonumber(p[2]),
    seen = tonumber(p[3]),
    last = loaded(p[4]),
    correction = tonumber(p[5]),
    shortest = loaded(p[6]),
    interval_end = loaded(p[7]),
    overloaded = p[8] == '1',
    next_start = tonumber(p[9]),
    paced = false, -- whether any of these has changed
    guaranteed = tonumber(r[1]),
    ceiling = tonumber(r[2]),
    max_delay = tonumber(r[3]),
    start_interval = tonumber(r[4]),
    start_allowance = tonumber(r[5]),
    max_queued = tonumber(r[6]),
    codel_target = tonumber(r[7]),
    codel_interval = tonumber(r[8]),
    exempt = r[9] == '1',
    from = '[line' .. rank .. ':',
    to = '(line' .. rank .. ';',
  }
  c.by_age = c.max_delay or c.codel_target
  fit(c)
  classes[rank] = c
  if rank >= pool.ranks then
    pool.ranks = rank + 1
  end
  return c
end

local tickets = {} -- by id; false: there is no such ticket

-- Where a ticket stands in `w`.
local function member(state, t, id)
  return format('%s%d:%016d:%015d:%s', state, t.rank, t.start, t.number, id)
end

-- running  rank slots charge epoch fence since tenant
-- line, lobby  rank slots charge start number arrival expires expires_as by_age position predicted correction tenant
local function decode(id, record)
  local t
  if byte(record) == 114 then -- r
    local rank, slots, charge, epoch, fence, since, tenant =
      match(record, '^running (%d) (%d+) (%d+) (%d+) (%d+) (%d+) (.*)$')
    t = {
      state = RUNNING,
      rank = tonumber(rank),
      slots = tonumber(slots),
      charge = tonumber(charge),
      epoch = tonumber(epoch),
      fence = tonumber(fence),
      since = tonumber(since),
      tenant = tenant,
    }
  else
    local state, rank, slots, charge, start, number, arrival, rest =
      match(record, '^(%l+) (%d) (%d+) (%d+) (%d+) (%d+) (%d+) (.*)$')
    local expires, expires_as, by_age, position, predicted, correction, tenant =
      match(rest, '^(%S+) (%S+) ([01]) (%d+) (%S+) (%S+) (.*)$')
    t = {
      state = state,
      rank = tonumber(rank),
      slots = tonumber(slots),
      charge = tonumber(charge),
      start = tonumber(start),
      number = tonumber(number),
      arrival = tonumber(arrival),
      expires = loaded(expires),
      expires_as = expires_as,
      by_age = by_age == '1',
      position = tonumber(position),
      predicted = tonumber(predicted),
      correction = tonumber(correction),
      tenant = tenant,
    }
    t.member = member(t.state, t, id)
  end
  t.id, t.process, t.was = id, sub(id, 1, 16), t.state
  return t
end

local function encode(t)
  if t.state == RUNNING then
    return format(
      'running %d %d %d %d %d %d %s', t.rank, t.slots, t.charge, t.epoch, t.fence, t.since, t.tenant
    )
  end
  return format(
    '%s %d %d %d %d %d %d %s %s %d %d %s %s %s',
    t.state, t.rank, t.slots, t.charge, t.start, t.number, t.arrival, stored(t.expires), t.expires_as,
    t.by_age and 1 or 0, t.position, t.predicted and exact(t.predicted) or '-', exact(t.correction), t.tenant
  )
end

local function ticket(id)
  local t = tickets[id]
  if t == nil then
    local record = call('HGET', D, id)
    t = record and decode(id, record)
    tickets[id] = t
  end
  return t
end

local processes = {}

local function process(name)
  local p = processes[name]
  if not p then
    local raw = call('HGET', PROC, name)
    local slots, running, waiting, digest, since = match(raw or '0 0 0 0 0', '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
    p = {
      raw = raw,
      slots = tonumber(slots),
      running = tonumber(running),
      waiting = tonumber(waiting),
      digest = tonumber(digest),
      since = raw and tonumber(since) or now,
    }
    processes[name] = p
  end
  return p
end

-- What happened to tickets other than those of the operation at hand, as lines for their processes.
local messages, told = {}, {}
local subject -- the ticket of the operation at hand: its caller gets an answer instead

local function tell(t, line)
  if t.process ~= me then
    local lines = messages[t.process]
    if not lines then
      lines = {}
      messages[t.process] = lines
    end
    lines[#lines + 1] = line
  elseif t ~= subject then
    told[#told + 1] = line
  end
end

-- ------------------------------------------------------------------ fairness (policy/fairness.py)

local flows, raw_flows = {}, {}

local function debt_member(rank, finish, tenant)
  return format('%d:%016d:%s', rank, finish, tenant)
end

local function flow(c, tenant)
  local key = c.rank .. ':' .. tenant
  local f = flows[key]
  if not f then
    local raw = raw_flows[key]
    if c.period > 0 then
      raw = false -- Read before the class came to rest.
    elseif raw == nil then
      raw = call('HGET', F, key)
    end
    local finish, newest, waiting, running = match(raw or '0 0 0 0', '^(%d+) (%d+) (%d+) (%d+)$')
    f = {
      key = key,
      class = c,
      tenant = tenant,
      raw = raw,
      finish = tonumber(finish),
      newest = tonumber(newest),
      waiting = tonumber(waiting),
      running = tonumber(running),
      period = c.period,
    }
    if raw and f.waiting == 0 and f.running == 0 then
      f.debt = debt_member(c.rank, f.finish, tenant)
    end
    flows[key] = f
  end
  if f.period ~= c.period then -- It is from a busy period that has ended.
    f.finish, f.newest, f.debt, f.period = 0, 0, nil, c.period
  end
  return f
end

local function arrive(c, f, charge)
  local start = max(f.finish, c.virtual)
  f.finish = start + charge
  if f.waiting > 0 and start < f.newest then
    start = f.newest
  end
  f.newest = start
  f.waiting = f.waiting + 1
  return start
end

local function forget_debts(c, last)
  local forgotten = call('ZRANGEBYLEX', DEBT, '[' .. c.rank .. ':', '(' .. c.rank .. ';', 'LIMIT', 0, last)
  if #forgotten > 0 then
    local keys = {}
    for i, member in ipairs(forgotten) do
      keys[i] = c.rank .. sub(member, 19)
    end
    call('HDEL', F, unpack(keys))
    call('ZREM', DEBT, unpack(forgotten))
  end
  c.debts = c.debts - #forgotten
end

-- Nothing of this class waits or runs: the busy period ends, and with it all debts. Tags start over from 0, so they never
-- outgrow what a double holds exactly.
local function rest(c)
  if c.debts > 0 then
    forget_debts(c, 2 * IDLE_TAGS)
    c.debts = 0
  end
  c.virtual = 0
  c.period = c.period + 1
end

local function at_rest(c)
  return c.held == 0 and c.queued == 0 and c.lobby == 0
end

-- ------------------------------------------------------------------ the forecast (policy/forecast.py)

local function moved(c, advance)
  local gap = max(0, now - c.last)
  advance = max(0, advance)
  c.last = now
  if c.seen < MEMORY then
    c.seen = c.seen + 1
  end
  c.gap = c.gap + (gap - c.gap) / c.seen
  c.advance = c.advance + (advance - c.advance) / c.seen
  c.paced = true
end

local function judge(c, predicted, correction, waited)
  if waited * correction > predicted * c.correction then
    c.correction = min(c.correction * STEP, MOST_CORRECTION)
  else
    c.correction = max(c.correction / STEP, 1 / MOST_CORRECTION)
  end
end

local function gap(c)
  if c.seen == 0 then
    return nil
  end
  local open_for = now - c.last
  if open_for > c.gap then
    return c.gap + (open_for - c.gap) / c.seen
  end
  return c.gap
end

local function predict(c, ahead, position, distance)
  local usual = gap(c)
  if usual then
    local grants = ahead + 1
    if distance > grants * c.advance and c.advance ~= 0 then
      grants = distance / c.advance
    end
    return grants * usual * c.correction
  end
  local least
  for rank = 0, pool.ranks - 1 do
    local other = gap(class(rank))
    if other and (not least or other < least) then
      least = other
    end
  end
  return least and least * position
end

-- ------------------------------------------------------------------ the line (line.py)

local NO_ONE = {}
local contenders -- classes with waiters, highest rank first; nil when that has to be looked up

local function contending()
  if pool.queued == 0 then
    return NO_ONE
  end
  if not contenders then
    contenders = {}
    for rank = 0, pool.ranks - 1 do
      local c = class(rank)
      if c.queued > 0 then
        contenders[#contenders + 1] = c
      end
    end
  end
  return contenders
end

local function emptied(c)
  contenders = nil
  c.credit = 0
  c.last = huge
  c.interval_end, c.overloaded = huge, false
  c.paced = true
end

-- The counters say someone waits whom the keys do not have: keys were lost. Believe the keys.
local function recount(c)
  local queued = call('ZLEXCOUNT', W, c.from, c.to)
  local lobby = call('ZLEXCOUNT', W, '[lobby' .. c.rank .. ':', '(lobby' .. c.rank .. ';')
  local wrong = queued ~= c.queued or lobby ~= c.lobby
  if wrong then
    pool.queued, pool.lobby = pool.queued + queued - c.queued, pool.lobby + lobby - c.lobby
    c.queued, c.lobby, c.head, contenders = queued, lobby, nil, nil
    if queued == 0 then
      emptied(c)
    end
  end
  return wrong
end

-- The ticket that stands there in `w`; what has no ticket is taken out.
local function behind(c, found)
  local t = ticket(match(found, ':%d+:%d+:(.*)$'))
  if t and t.member == found and t.state ~= GONE then
    return t
  end
  call('ZREM', W, found)
  recount(c)
  return nil
end

local function head(c)
  while not c.head and c.queued > 0 do
    local found = call('ZRANGEBYLEX', W, c.from, c.to, 'LIMIT', 0, 1)[1]
    if found then
      c.head = behind(c, found)
    else
      recount(c)
    end
  end
  return c.head
end

local function head_of_lobby(c)
  while c.lobby > 0 do
    local found = call('ZRANGEBYLEX', W, '[lobby' .. c.rank .. ':', '(lobby' .. c.rank .. ';', 'LIMIT', 0, 1)[1]
    local t = found and behind(c, found)
    if t then
      return t
    end
    recount(c)
  end
end

local function worst(c)
  local found = call('ZREVRANGEBYLEX', W, c.to, c.from, 'LIMIT', 0, 1)[1]
  return found and behind(c, found)
end

-- When the oldest waiter arrived and who it is. Classes whose rules did not ask for it yet show the head instead.
local function oldest(c)
  if not c.oldest then
    local found = call('ZRANGEBYLEX', OLD, '[' .. c.rank .. ':', '(' .. c.rank .. ';', 'LIMIT', 0, 1)[1]
    local t
    if found then
      t = ticket(sub(found, 36))
      if not t or t.state ~= LINE then
        call('ZREM', OLD, found)
        return oldest(c)
      end
    else
      t = head(c)
    end
    c.oldest = t
  end
  return c.oldest
end

-- How many stand before a waiter in its class, and its position.
local function before(t)
  local place = call('ZRANK', W, t.member) or 0
  local c = class(t.rank)
  local others = 0
  if t.state == LINE then
    for rank = 0, t.rank - 1 do
      others = others + class(rank).queued
    end
    return place - others, place + 1
  end
  -- The whole line stands before the lobby, whatever its classes.
  for rank = 0, t.rank - 1 do
    others = others + class(rank).lobby
  end
  return c.queued + place - pool.queued - others, place + 1
end

local function stand(t, state)
  t.state = state
  t.member = member(state, t, t.id)
  call('ZADD', W, 0, t.member)
end

local function old_member(t)
  return format('%d:%015d:%016d:%s', t.rank, t.number, t.arrival, t.id)
end

-- Stand a ticket in line.
local function enter(c, t)
  if c.queued == 0 then
    contenders = nil
    c.last = now
    c.paced = true
    if c.codel_target then
      c.shortest, c.interval_end = huge, now + c.codel_interval
    end
  end
  stand(t, LINE)
  c.queued = c.queued + 1
  pool.queued = pool.queued + 1
  if c.by_age then
    t.by_age = true
    if c.oldest and t.number < c.oldest.number then -- From the lobby.
      c.oldest = nil
    end
    call('ZADD', OLD, 0, old_member(t))
    call('EXPIRE', OLD, KEPT)
  end
  if c.queued == 1 or (c.head and (t.start < c.head.start or t.start == c.head.start and t.number < c.head.number)) then
    c.head = t
  end
end

-- Take a ticket out of the line; it still counts as waiting for its tenant.
local function step_out(c, t)
  call('ZREM', W, t.member)
  if t.by_age then
    call('ZREM', OLD, old_member(t))
    t.by_age = false
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
    emptied(c)
  end
end

-- Move a newcomer from the line to the lobby.
local function park(c, t)
  step_out(c, t)
  stand(t, LOBBY)
  c.lobby = c.lobby + 1
  pool.lobby = pool.lobby + 1
end

local function leave_lobby(c, t)
  call('ZREM', W, t.member)
  c.lobby = c.lobby - 1
  pool.lobby = pool.lobby - 1
end

-- A waiter goes without a permit, from wherever it stands: its tenant gets the charge back.
local function leave(t)
  local c = class(t.rank)
  if t.state == LOBBY then
    leave_lobby(c, t)
  else
    step_out(c, t)
  end
  t.state = GONE
  local f = flow(c, t.tenant)
  f.waiting = f.waiting - 1
  f.finish = max(0, f.finish - t.charge)
  if at_rest(c) then
    rest(c)
  end
end

-- What a newcomer of this class would wait, for its Retry-After.
local function newcomer_wait(c)
  local position = 1
  for rank = 0, c.rank do
    local above = class(rank)
    position = position + above.queued + above.lobby
  end
  return predict(c, c.queued + c.lobby, position, 0)
end

local function rounded(number)
  return number and floor(number + 0.5) or -1
end

local function evict(t, reason)
  leave(t)
  tell(t, format('5 %s %s %d', t.id, reason, rounded(newcomer_wait(class(t.rank)))))
end

-- ------------------------------------------------------------------ who is next (policy/shares.py)

local function held_back(c, slots)
  if c.paused then
    return 'class-paused'
  end
  -- A ceiling of 1 is the pool's own limit: a head too wide for it is not passed over, it stops the pump.
  if c.held > 0 and c.held + slots > c.cap and c.ceiling < 1 then
    return 'class-ceiling'
  end
  if c.start_interval and now < c.next_start - c.start_allowance then
    return 'start-rate'
  end
end

local function next_class()
  local by_rank, by_credit, overdue
  local overdue_since = huge
  for _, c in ipairs(contending()) do
    local t = head(c)
    if t and not held_back(c, t.slots) then
      if c.max_delay then
        local arrival = oldest(c).arrival
        if now - arrival >= c.max_delay and arrival < overdue_since then
          overdue, overdue_since = c, arrival
        end
      end
      if not by_credit and c.credit > 0 and c.credit >= t.slots * MICRO then
        by_credit = c
      end
      by_rank = by_rank or c
    end
  end
  return overdue or by_credit or by_rank
end

-- ------------------------------------------------------------------ the pump (core.py)

local moves = PORTION -- that this call may still make of its own accord
local leases = {}

-- A process whose lease has run out may be gone: nothing is granted to it until it has renewed.
local function alive(name)
  if name == me then
    return true
  end
  if leases[name] == nil then
    local ends = call('ZSCORE', LEASE, name)
    leases[name] = (ends and tonumber(ends) > now) and true or false
  end
  return leases[name]
end

-- Count the slots of a ticket that begins to run, under the next fence.
local function take(c, t)
  local f = flow(c, t.tenant)
  f.waiting = f.waiting - 1
  f.running = f.running + 1
  if t.start > c.virtual then
    c.virtual = t.start
  end
  c.held = c.held + t.slots
  c.running = c.running + 1
  pool.in_use = pool.in_use + t.slots
  pool.running = pool.running + 1
  pool.fence = pool.fence + 1
  t.epoch, t.fence, t.since, t.in_use = pool.epoch, pool.fence, now, pool.in_use
  t.state = RUNNING
end

-- Take the slots for a ticket that counts as waiting and stands nowhere any more.
local function start(c, t)
  for _, other in ipairs(contending()) do
    if other.guaranteed > 0 then
      other.credit = min(other.credit + other.guaranteed * t.slots, other.most_credit)
    end
  end
  if c.start_interval then
    c.next_start = max(c.next_start, now) + c.start_interval
    c.paced = true
  end
  take(c, t)
end

-- Let the head of a class run.
local function grant(c, t)
  local waited = now - t.arrival
  if t.position > 0 then
    moved(c, t.start - c.virtual)
    if t.correction > 0 and t.predicted and waited > 0 then
      judge(c, t.predicted, t.correction, waited)
    end
  end
  if c.codel_target then
    c.shortest = min(c.shortest, waited)
    c.paced = true
  end
  step_out(c, t)
  start(c, t)
  if c.credit > 0 then
    c.credit = max(0, c.credit - t.slots * MICRO)
  end
  tell(t, format('1 %s %d %d %d', t.id, t.epoch, t.fence, t.in_use))
end

-- Grant whatever may run, and drop those whose deadline had passed when their turn came.
local function pump()
  if pool.paused == 1 then
    return
  end
  while pool.in_use < pool.limit and pool.queued > 0 and moves > 0 do
    local c = next_class()
    if not c then
      break
    end
    local t = c.head
    if t.expires <= now then
      evict(t, t.expires_as)
    elseif not alive(t.process) then
      evict(t, 'evicted-disconnect')
    elseif pool.in_use > 0 and pool.in_use + t.slots > pool.limit then
      break -- Nothing smaller overtakes a head that does not fit; one wider than the whole limit runs alone.
    else
      grant(c, t)
    end
    moves = moves - 1
  end
end

-- The first of the lobby, in the line's order, for whose class there is room in the line.
local function next_of_lobby()
  if rules.most_queued > 0 and pool.queued >= rules.most_queued then
    return nil
  end
  for rank = 0, pool.ranks - 1 do
    local c = class(rank)
    if c.lobby > 0 and not (c.max_queued and c.queued >= c.max_queued) then
      return head_of_lobby(c)
    end
  end
end

-- Pump, and let the lobby move up.
local function settle()
  pump()
  while pool.lobby > 0 and moves > 0 do
    local t = next_of_lobby()
    if not t then
      break
    end
    local c = class(t.rank)
    leave_lobby(c, t)
    enter(c, t)
    tell(t, '4 ' .. t.id)
    moves = moves - 1
    pump()
  end
end

-- ------------------------------------------------------------------ arrival

-- Whether a newcomer with nobody before it can run at once: what `pump` would find.
local function runs_alone(c, slots)
  return pool.paused == 0
    and pool.in_use < pool.limit
    and (pool.in_use == 0 or pool.in_use + slots <= pool.limit)
    and not held_back(c, slots)
end

-- Enforce the bounds on a newcomer that stands in line; the reason to refuse it, or nil.
local function find_room(c, t)
  local f = flow(c, t.tenant)
  if rules.most_per_tenant and f.waiting > rules.most_per_tenant then
    return 'rejected-tenant-full'
  end
  if rules.refuse_hopeless and t.expires < huge then
    local ahead, position = before(t)
    local predicted = predict(c, ahead, position, t.start - c.virtual)
    if predicted and now + predicted > t.expires then
      return 'rejected-hopeless'
    end
  end
  local class_full = c.max_queued and c.queued > c.max_queued
  local line_full = rules.most_queued > 0 and pool.queued > rules.most_queued
  if not (class_full or line_full) then
    return nil
  end
  local lowest = contending()
  lowest = class_full and c or lowest[#lowest]
  local other = worst(lowest)
  if not other then
    return nil -- Keys were lost; the line is shorter than it was taken for.
  end
  local reason
  if other.rank > t.rank then
    reason = 'evicted-priority'
  elseif other.rank == t.rank and t.start < other.start and flow(c, other.tenant).waiting > f.waiting then
    reason = 'evicted-fairness'
  end
  if reason then
    evict(other, reason)
    return nil
  end
  if rules.block and pool.lobby < rules.most_in_lobby then
    park(c, t)
    return nil
  end
  return 'rejected-queue-full'
end

-- Whether someone in the lobby stands before this newcomer, and could have the place it found in line.
local function overtakes_lobby(t)
  for rank = 0, t.rank do
    local c = class(rank)
    if c.lobby > 0 then
      if rank == t.rank then
        local first = head_of_lobby(c)
        return first ~= nil and first.start <= t.start
      end
      if not c.max_queued or c.queued < c.max_queued then
        return true
      end
    end
  end
  return false
end

local function granted(t)
  return { GRANTED, t.epoch, t.fence, t.in_use or pool.in_use }
end

-- The present state of a live ticket, as the answer to its offer.
local function present(t, position, predicted)
  if t.state == RUNNING then
    return granted(t)
  end
  return { t.state == LINE and WAITING or PARKED, position, rounded(predicted) }
end

local function refused(c, reason, position)
  return { REFUSED, reason, position, rounded(newcomer_wait(c)) }
end

local function place(t)
  local ahead, position = before(t)
  local c = class(t.rank)
  return position, predict(c, ahead, position, t.start - c.virtual)
end

local function live(id)
  local t = ticket(id)
  if not t or t.state == GONE then
    return nil
  end
  return t
end

local flush_tickets

local function offer(op)
  local t = live(op.id)
  if t then -- The reply to an earlier call was lost.
    if t.state == RUNNING then
      return granted(t)
    end
    return present(t, place(t))
  end
  if tickets[op.id] then -- It left during this very call: let that be written first.
    flush_tickets()
  end
  local c = class(op.rank)
  pool.arrivals = pool.arrivals + 1
  t = {
    id = op.id,
    process = sub(op.id, 1, 16),
    rank = op.rank,
    tenant = op.tenant,
    slots = op.slots,
    charge = op.charge,
    number = pool.arrivals,
    arrival = now,
    expires = op.patience and now + op.patience or huge,
    expires_as = op.expires_as,
    position = 0,
    correction = 0,
  }
  if pool.closed == 1 or t.expires <= now or t.slots > c.widest then
    local reason = t.slots > c.widest and 'rejected-too-wide' or nil
    reason = t.expires <= now and 'rejected-hopeless' or reason
    local f = flow(c, t.tenant)
    f.finish = max(f.finish, c.virtual) -- As its arrival and withdrawal would leave it.
    return refused(c, pool.closed == 1 and 'rejected-draining' or reason, 0)
  end
  tickets[t.id] = t
  subject = t
  local f = flow(c, t.tenant)
  local newest = f.newest
  t.start = arrive(c, f, t.charge)
  if c.exempt or (pool.queued == 0 and runs_alone(c, t.slots)) then
    start(c, t)
    return granted(t)
  end
  -- The newcomer stands in line before the bounds are looked at: whoever can run at once is never refused for a full
  -- line, and the bounds see the line as it will be.
  enter(c, t)
  -- Whoever waited before could not run, so without a free slot there is nothing to pump for.
  if pool.in_use < pool.limit then
    pump()
    if t.state == RUNNING then
      settle()
      return granted(t)
    end
  end
  local refusal
  if op.may_wait then
    refusal = find_room(c, t)
  else
    refusal = 'rejected-busy'
  end
  if refusal then
    local _, position = before(t)
    leave(t)
    f.newest = newest
    settle()
    return refused(c, refusal, position)
  end
  if pool.lobby > 0 and t.state == LINE and overtakes_lobby(t) then
    park(c, t)
  end
  t.position, t.predicted = place(t)
  t.correction = c.seen > 0 and c.correction or 0
  settle()
  -- Pushing someone out may have removed a wide head that had stopped the pump: then it runs after all.
  return present(t, t.position, t.predicted)
end

-- ------------------------------------------------------------------ departure

-- A running ticket ends: its slots are free, its tenant's account is settled.
local function finish(t, difference)
  local c = class(t.rank)
  local f = flow(c, t.tenant)
  t.state = GONE
  c.held = c.held - t.slots
  c.running = c.running - 1
  pool.in_use = pool.in_use - t.slots
  pool.running = pool.running - 1
  f.running = f.running - 1
  f.finish = max(0, f.finish + difference)
  if at_rest(c) then
    rest(c)
  end
end

-- Someone knows a fence from the future: the server has lost what came after, and would issue fences twice. A new epoch
-- begins.
local function heard_of(epoch, fence)
  if epoch > pool.epoch or epoch == pool.epoch and fence > pool.fence then
    pool.epoch = max(pool.epoch + 1, epoch + 1, now)
  end
end

local function release(op)
  heard_of(op.epoch, op.fence)
  local t = live(op.id)
  if not t then
    return UNKNOWN
  end
  if t.state == RUNNING then
    if op.epoch ~= t.epoch or op.fence ~= t.fence then
      return STALE
    end
    finish(t, op.difference)
  else
    leave(t) -- Its grant was lost in a failover, and the work is over.
  end
  if pool.queued + pool.lobby > 0 then
    settle()
  end
  return DONE
end

local function withdraw(op)
  local t = live(op.id)
  if not t then
    return UNKNOWN
  end
  if t.process == me then
    subject = t
  end
  if t.state == RUNNING then
    finish(t, 0)
    tell(t, '8 ' .. t.id)
  else
    evict(t, op.reason)
  end
  settle()
  return DONE
end

-- Time has passed: evict who has waited too long, and start what a start rate held back.
local function expire()
  if pool.closed == 1 then -- A drain of a long line goes on.
    for _, found in ipairs(call('ZRANGE', W, 0, moves - 1)) do
      local t = behind(class(tonumber(match(found, '^%l+(%d)'))), found)
      if t then
        evict(t, 'evicted-draining')
        moves = moves - 1
      end
    end
  end
  for _, found in ipairs(call('ZRANGEBYSCORE', DUE, '-inf', whole(now), 'LIMIT', 0, moves)) do
    local t = live(sub(found, 17))
    if not t or t.state == RUNNING then
      call('ZREM', DUE, found)
    else
      evict(t, t.expires_as)
      moves = moves - 1
    end
  end
  for _, c in ipairs(contending()) do
    if c.codel_target then
      if now >= c.interval_end then
        c.overloaded = c.shortest > c.codel_target
        c.shortest, c.interval_end = huge, now + c.codel_interval
        c.paced = true
      end
      while c.overloaded and c.queued > 0 and moves > 0 do
        local t = oldest(c)
        if not t or now < t.arrival + 2 * c.codel_target then
          break
        end
        evict(t, 'evicted-codel')
        moves = moves - 1
      end
    end
  end
  settle()
end

-- When `expire` has something to do by time alone; -1 when nothing is due.
local function next_event()
  if pool.queued + pool.lobby == 0 then
    return -1
  end
  if moves <= 0 then
    return now
  end
  local due = tonumber(call('ZRANGE', DUE, 0, 0, 'WITHSCORES')[2] or huge)
  for _, c in ipairs(contending()) do
    if c.start_interval and not c.paused and pool.paused == 0 then
      local start_due = c.next_start - c.start_allowance
      if start_due > now then
        due = min(due, start_due)
      end
    end
    if c.codel_target then
      due = min(due, c.interval_end)
      if c.overloaded then
        local t = oldest(c)
        due = t and min(due, t.arrival + 2 * c.codel_target) or due
      end
    end
  end
  return due < huge and math.ceil(due) or -1
end

-- ------------------------------------------------------------------ steering

local function resize(op)
  pool.limit = op.limit
  for rank = 0, pool.ranks - 1 do
    fit(class(rank))
  end
  settle()
  return DONE
end

local function switch(op, paused)
  if op.rank then
    class(op.rank).paused = paused
  else
    pool.paused = paused and 1 or 0
  end
  settle()
  return DONE
end

local function close()
  pool.closed = 1
  expire()
  return DONE
end

local function reopen()
  pool.closed = 0
  return DONE
end

-- ------------------------------------------------------------------ processes and their leases

-- Take everything a process has, a portion at a time; true when nothing is left.
local function strip(name, portion, reason)
  flush_tickets()
  local ids = call('ZRANGEBYLEX', OWN, '[' .. name .. ':', '(' .. name .. ';', 'LIMIT', 0, portion)
  for _, id in ipairs(ids) do
    local t = ticket(id)
    if not t then
      call('ZREM', OWN, id)
    elseif t.state == RUNNING then
      finish(t, 0)
      tell(t, '8 ' .. id)
    elseif t.state ~= GONE then
      evict(t, reason)
    end
  end
  if #ids < portion then
    process(name).gone = true
    call('ZREM', LEASE, name)
    return true
  end
  return false
end

-- Processes whose lease has run out are dead: their slots go to others, their waiters leave.
local function reap()
  if pool.reap_at == 0 or now < pool.reap_at then
    return
  end
  local portion = REAPED
  for _, name in ipairs(call('ZRANGEBYSCORE', LEASE, '-inf', whole(now), 'LIMIT', 0, 8)) do
    if name ~= me and portion > 0 then
      local p = process(name)
      local size = p.running + p.waiting
      strip(name, portion, 'evicted-disconnect')
      portion = portion - size
    end
  end
  pool.reap_at = tonumber(call('ZRANGE', LEASE, 0, 0, 'WITHSCORES')[2] or 0)
end

local resync = false
local beating = false

local function renew(ends)
  call('ZADD', LEASE, whole(ends), me)
  for _, key in ipairs(KEYS) do
    call('EXPIRE', key, KEPT)
  end
  process(me).stays, process(me).gone = true, nil
  pool.reap_at = pool.reap_at == 0 and ends or min(pool.reap_at, ends)
end

local function beat(op)
  local p = process(me)
  -- What this process believes to have and what it has: as both stood before this call.
  if op.digest and op.digest ~= p.before then
    resync = true
  end
  renew(now + op.ttl)
  beating = true
  return DONE
end

-- Goodbye: everything of this process is given back.
local function part()
  local all = strip(me, PORTION, 'evicted-draining')
  settle()
  return all and DONE or MORE
end

-- After a failover, or when it was taken for dead: what a process really holds counts, also above the limit.
local function hold(op)
  heard_of(op.epoch, op.fence)
  local t = live(op.id)
  if t and t.state == RUNNING then
    return granted(t)
  end
  local c = class(op.rank)
  if t then -- Its grant was lost.
    if t.state == LOBBY then
      leave_lobby(c, t)
    else
      step_out(c, t)
    end
  else
    if tickets[op.id] then
      flush_tickets()
    end
    t = { id = op.id, process = sub(op.id, 1, 16), rank = op.rank, tenant = op.tenant, slots = op.slots, charge = op.charge }
    tickets[op.id] = t
    t.start = arrive(c, flow(c, op.tenant), op.charge)
  end
  take(c, t)
  settle()
  return granted(t)
end

-- ------------------------------------------------------------------ operations

local function position(op)
  local t = live(op.id)
  if not t then
    return UNKNOWN
  end
  if t.state == RUNNING then
    return { PLACE, 0, 0, 'nothing' }
  end
  local at, predicted = place(t)
  local binding
  if t.state == LOBBY then
    binding = 'line-full'
  elseif pool.paused == 1 then
    binding = 'paused'
  else
    local c = class(t.rank)
    binding = held_back(c, t.slots)
    if not binding then
      if head(c) ~= t then
        binding = 'line-order'
      else
        binding = next_class() == c and 'pool-limit' or 'higher-class'
      end
    end
  end
  return { PLACE, at, rounded(predicted), binding }
end

-- Answered at the end of the call, when all else is written.
local function later(op)
  return op
end

local VERBS = {
  o = { offer, '^o (%S+) (%d) (%d+) (%d+) (%S+) (%S+) ([01]) (.*)$' },
  r = { release, '^r (%S+) (%d+) (%d+) (%-?%d+)$' },
  w = { withdraw, '^w (%S+) (%S+)$' },
  h = { hold, '^h (%S+) (%d+) (%d+) (%d) (%d+) (%d+) (.*)$' },
  p = { position, '^p (%S+)$' },
  b = { beat, '^b (%d+) (%S+)$' },
  l = { later, '^l (%d+)$' },
  m = { later, '^m ?(.*)$' },
  s = { resize, '^s (%d+)$' },
  P = { function(op) return switch(op, true) end, '^P (%S+)$' },
  R = { function(op) return switch(op, false) end, '^R (%S+)$' },
  c = { close, '^c$' },
  n = { reopen, '^n$' },
  x = { part, '^x$' },
}

local function parse(text)
  local verb = sub(text, 1, 1)
  local run, pattern = unpack(VERBS[verb] or {})
  local a, b, c, d, e, f, g, h
  if pattern then
    a, b, c, d, e, f, g, h = match(text, pattern)
  end
  if not a then
    return nil
  elseif verb == 'o' then
    return {
      run = run, id = a, rank = tonumber(b), slots = tonumber(c), charge = tonumber(d), patience = tonumber(e),
      expires_as = f, may_wait = g == '1', tenant = h, flow = b .. ':' .. h,
    }
  elseif verb == 'r' then
    return { run = run, id = a, epoch = tonumber(b), fence = tonumber(c), difference = tonumber(d) }
  elseif verb == 'w' then
    return { run = run, id = a, reason = b }
  elseif verb == 'h' then
    return {
      run = run, id = a, epoch = tonumber(b), fence = tonumber(c), rank = tonumber(d), slots = tonumber(e),
      charge = tonumber(f), tenant = g, flow = d .. ':' .. g,
    }
  elseif verb == 'p' then
    return { run = run, id = a }
  elseif verb == 'b' then
    return { run = run, ttl = tonumber(a), digest = tonumber(b) }
  elseif verb == 's' then
    return { run = run, limit = tonumber(a) }
  elseif verb == 'l' then
    return { run = run, tenants = tonumber(a) }
  elseif verb == 'm' then
    return { run = run, after = a }
  end
  return { run = run, rank = tonumber(a) }
end

-- ------------------------------------------------------------------ writing

-- In chunks: a call takes only so many arguments.
local function write(command, key, list)
  for i = 1, #list, PORTION do
    call(command, key, unpack(list, i, min(i + PORTION - 1, #list)))
  end
end

-- What a waiting ticket adds to its process's digest; a running one adds it twice.
local function mark(id)
  local n = tonumber(sub(sub(id, 18), -6), 16) or 0
  return n * n + 1
end

-- Whether a comes before b byte by byte, as in `own`; Lua's own comparison goes by the locale.
local function sorts_before(a, b)
  for i = 1, min(#a, #b) do
    local x, y = byte(a, i), byte(b, i)
    if x ~= y then
      return x < y
    end
  end
  return #a < #b
end

-- Slots and tickets counted so far, by class, while a walk along `own` that takes several beats is under way.
local audit
if pool.audit ~= '' then
  audit = { cursor = match(pool.audit, '^%S+') }
  for number in gmatch(pool.audit, ' (%d+)') do
    audit[#audit + 1] = tonumber(number)
  end
end

local function counted(walk, t, sign)
  local slots = 2 * t.rank + 1
  walk[slots] = (walk[slots] or 0) + sign * t.slots
  walk[slots + 1] = (walk[slots + 1] or 0) + sign
end

-- What a ticket in this state means for the counts of its process.
local function account(p, t, state, sign)
  if state == RUNNING then
    p.slots = p.slots + sign * t.slots
    p.running = p.running + sign
    p.digest = (p.digest + sign * 2 * mark(t.id)) % MODULUS
  elseif state == LINE or state == LOBBY then
    p.waiting = p.waiting + sign
    p.digest = (p.digest + sign * mark(t.id)) % MODULUS
  end
end

-- Entries, their index, their deadlines and their processes' counts follow from where each ticket was and is.
local waiting_at_first = pool.queued + pool.lobby
local live_at_first = waiting_at_first + pool.running

flush_tickets = function()
  local set, gone, owned, disowned, timed, untimed = {}, {}, {}, {}, {}, {}
  for id, t in pairs(tickets) do
    if t and t.state ~= t.was then
      local p = process(t.process)
      account(p, t, t.was, -1)
      account(p, t, t.state, 1)
      if audit and (t.was == RUNNING or t.state == RUNNING) and not sorts_before(audit.cursor, id) then
        counted(audit, t, t.state == RUNNING and 1 or -1)
      end
      if t.state == GONE then
        if t.was then
          gone[#gone + 1] = id
          disowned[#disowned + 1] = id
        end
      else
        set[#set + 1] = id
        set[#set + 1] = encode(t)
        if not t.was then
          owned[#owned + 1] = 0
          owned[#owned + 1] = id
        end
      end
      if t.expires and t.expires < huge then
        local waited, waits = t.was == LINE or t.was == LOBBY, t.state == LINE or t.state == LOBBY
        if waits and not waited then
          timed[#timed + 1] = whole(t.expires)
          timed[#timed + 1] = format('%015d:%s', t.number, id)
        elseif waited and not waits then
          untimed[#untimed + 1] = format('%015d:%s', t.number, id)
        end
      end
      if t.state == GONE then
        tickets[id] = false
      else
        t.was = t.state
      end
    end
  end
  write('HSET', D, set)
  write('HDEL', D, gone)
  write('ZADD', OWN, owned)
  write('ZREM', OWN, disowned)
  write('ZADD', DUE, timed)
  write('ZREM', DUE, untimed)
  -- A key that has just come into being has no time to live yet; those that stay get theirs with every beat.
  if #timed > 0 then
    call('EXPIRE', DUE, KEPT)
  end
  if #owned > 0 and live_at_first == 0 then
    call('EXPIRE', D, KEPT)
    call('EXPIRE', OWN, KEPT)
  end
end

local function flush_flows()
  local set, gone, indebted, quit = {}, {}, {}, {}
  for key, f in pairs(flows) do
    local c = f.class
    if f.period ~= c.period then -- Its class came to rest: what was a debt is forgotten already.
      f.finish, f.newest, f.debt = 0, 0, nil
    end
    local present = f.waiting > 0 or f.running > 0
    local debt = not present and f.finish > c.virtual and debt_member(c.rank, f.finish, f.tenant) or nil
    if f.debt and f.debt ~= debt then
      quit[#quit + 1] = f.debt
      c.debts = c.debts - 1
    end
    if debt and f.debt ~= debt then
      indebted[#indebted + 1] = 0
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
  write('HSET', F, set)
  write('HDEL', F, gone)
  write('ZREM', DEBT, quit)
  write('ZADD', DEBT, indebted)
  if #set > 0 and live_at_first == 0 then
    call('EXPIRE', F, KEPT)
  end
  if #indebted > 0 then
    call('EXPIRE', DEBT, KEPT)
    for _, c in pairs(classes) do
      if c.debts > IDLE_TAGS then -- The smallest are forgiven.
        forget_debts(c, c.debts - IDLE_TAGS / 2)
      end
    end
  end
end

local function flush_processes()
  local mine = processes[me]
  if mine and (not mine.raw or mine.gone) and not mine.stays and mine.running + mine.waiting > 0 then
    renew(now + JOIN_TTL) -- Nothing may be held by a process nobody watches.
  end
  for name, p in pairs(processes) do
    if p.gone and p.running + p.waiting == 0 then
      if p.raw then
        call('HDEL', PROC, name)
      end
    elseif p.raw or p.stays or p.running + p.waiting > 0 then
      local record = format('%d %d %d %d %d', p.slots, p.running, p.waiting, p.digest, p.since)
      if record ~= p.raw then
        call('HSET', PROC, name, record)
      end
    end
  end
  if mine and mine.stays and not mine.raw then
    call('EXPIRE', PROC, KEPT)
  end
end

local function flush_pool()
  local list = {}
  pool.audit = ''
  if audit then
    local numbers = { audit.cursor }
    for i = 1, 2 * pool.ranks do
      numbers[i + 1] = whole(audit[i] or 0)
    end
    pool.audit = table.concat(numbers, ' ')
  end
  for i = 1, 14 do
    local value = whole(pool[FIELDS[i]])
    if value ~= was[i] then
      list[#list + 1] = FIELDS[i]
      list[#list + 1] = value
    end
  end
  for i = 15, 16 do
    if pool[FIELDS[i]] ~= (was[i] or '') then
      list[#list + 1] = FIELDS[i]
      list[#list + 1] = pool[FIELDS[i]]
    end
  end
  for rank, c in pairs(classes) do
    local record = format(
      '%d %d %d %d %d %d %d %d',
      c.held, c.running, c.queued, c.lobby, c.credit, c.virtual, c.paused and 1 or 0, c.debts
    )
    if record ~= c.raw then
      list[#list + 1] = 'class' .. rank
      list[#list + 1] = record
    end
    if c.paced then
      list[#list + 1] = 'pace' .. rank
      list[#list + 1] = format(
        '%s %s %d %s %s %s %s %d %s',
        exact(c.gap), exact(c.advance), c.seen, stored(c.last), exact(c.correction), stored(c.shortest),
        stored(c.interval_end), c.overloaded and 1 or 0, exact(c.next_start)
      )
    end
  end
  write('HSET', ST, list)
  if not was[2] then
    call('EXPIRE', ST, KEPT)
  end
end

-- ------------------------------------------------------------------ the audit

-- Slots in use change only together with an entry in `d`. Each beat walks a portion along `own` and counts again; a walk
-- that has reached the end corrects the counters, should keys have been lost. Returns by how many slots they were wrong.
local function recheck()
  local walk = audit or {}
  local ids = call('ZRANGEBYLEX', OWN, audit and '(' .. audit.cursor or '-', '+', 'LIMIT', 0, AUDITED)
  local records = #ids > 0 and call('HMGET', D, unpack(ids)) or {}
  for i, id in ipairs(ids) do
    local t = records[i] and decode(id, records[i])
    if not t then
      call('ZREM', OWN, id)
    elseif t.state == RUNNING then
      counted(walk, t, 1)
    end
  end
  if #ids == AUDITED then
    walk.cursor = ids[#ids]
    audit = walk
    return 0
  end
  audit = nil
  if call('EXISTS', D) == 0 then
    call('DEL', OWN, W, OLD, DUE, F, DEBT) -- Nothing lives: nothing may be left, whatever has happened.
  end
  local wrong = 0
  for rank = 0, pool.ranks - 1 do
    local c, slots, running = class(rank), walk[2 * rank + 1] or 0, walk[2 * rank + 2] or 0
    wrong = wrong + math.abs(c.held - slots)
    pool.in_use, c.held = pool.in_use + slots - c.held, slots
    pool.running, c.running = pool.running + running - c.running, running
    recount(c)
    if at_rest(c) then
      rest(c)
    end
  end
  return wrong
end

-- ------------------------------------------------------------------ questions

-- A page of the tickets of this process; whoever has seen all pages knows what it has here.
local function page(after)
  local from = after == '' and '[' .. me .. ':' or '(' .. after
  local ids = call('ZRANGEBYLEX', OWN, from, '(' .. me .. ';', 'LIMIT', 0, PORTION)
  if after == '' and #ids < PORTION then
    -- All of them at once: a good time to see whether the process's own counts are right.
    local p = process(me)
    p.slots, p.running, p.waiting, p.digest = 0, 0, 0, 0
    local records = #ids > 0 and call('HMGET', D, unpack(ids)) or {}
    for i, id in ipairs(ids) do
      if records[i] then
        local t = decode(id, records[i])
        account(p, t, t.state, 1)
      end
    end
  end
  return { PAGE, #ids == PORTION and ids[#ids] or '', ids }
end

local function look_at_class(c)
  local first = head(c)
  local waited, binding = 0, ''
  if first then
    binding = pool.paused == 1 and 'paused' or held_back(c, first.slots)
    if not binding then
      binding = next_class() == c and 'pool-limit' or 'higher-class'
    end
    local arrival = first.arrival
    if c.by_age then
      arrival = oldest(c).arrival
    else -- Among the next to go: a waiter older than these stands behind many.
      for _, found in ipairs(call('ZRANGEBYLEX', W, c.from, c.to, 'LIMIT', 0, 100)) do
        local t = behind(c, found)
        arrival = t and min(arrival, t.arrival) or arrival
      end
    end
    waited = now - arrival
  end
  return {
    c.held, c.running, c.queued, c.lobby, c.cap, c.paused and 1 or 0, c.credit, waited, rounded(newcomer_wait(c)), binding,
  }
end

-- The busiest tenants; of very many, among those that are found first.
local function busiest(most)
  local raw
  if call('HLEN', F) <= PORTION then
    raw = call('HGETALL', F)
  else
    raw = call('HSCAN', F, 0, 'COUNT', PORTION)[2]
  end
  local found = {}
  for i = 1, #raw, 2 do
    local waiting, running = match(raw[i + 1], '^%d+ %d+ (%d+) (%d+)$')
    waiting, running = tonumber(waiting), tonumber(running)
    if waiting + running > 0 then
      found[#found + 1] = { tonumber(sub(raw[i], 1, 1)), sub(raw[i], 3), running, waiting }
    end
  end
  table.sort(found, function(a, b)
    local x, y = a[3] + a[4], b[3] + b[4]
    return x > y or x == y and sorts_before(a[2], b[2])
  end)
  local top = {}
  for i = 1, min(most, #found) do
    top[i] = found[i]
  end
  return top, call('HLEN', F) - call('ZCARD', DEBT)
end

local function look(op)
  local of_classes, of_processes = {}, {}
  for rank = 0, pool.ranks - 1 do
    of_classes[rank + 1] = look_at_class(class(rank))
  end
  local drain
  for _, c in ipairs(contending()) do
    local usual = gap(c)
    if usual and usual > 0 then
      drain = (drain or 0) + MICRO / usual
    end
  end
  local ends = call('ZRANGE', LEASE, 0, PORTION - 1, 'WITHSCORES')
  for i = 1, #ends, 2 do
    local p = process(ends[i])
    of_processes[#of_processes + 1] = { ends[i], p.slots, p.running, p.waiting, tonumber(ends[i + 1]) - now, p.since }
  end
  local top, tenants = busiest(op.tenants)
  return { LOOK, pool.paused, pool.closed, drain and exact(drain) or '', of_classes, top, tenants, of_processes }
end

-- ------------------------------------------------------------------ the step

-- Everything the operations name is read in two calls.
local ops = {}
do
  local ids, keys = {}, {}
  for i = 3, #ARGV do
    local op = parse(ARGV[i])
    if not op then
      return redis.error_reply('ERR admission: operation not understood: ' .. sub(ARGV[i], 1, 60))
    end
    ops[#ops + 1] = op
    if op.id and tickets[op.id] == nil then
      tickets[op.id] = false
      ids[#ids + 1] = op.id
    end
    if op.flow and raw_flows[op.flow] == nil then
      raw_flows[op.flow] = false
      keys[#keys + 1] = op.flow
    end
  end
  if #ids > 0 then
    for i, record in ipairs(call('HMGET', D, unpack(ids))) do
      if record then
        local t = decode(ids[i], record)
        local key = t.rank .. ':' .. t.tenant
        tickets[ids[i]] = t
        if raw_flows[key] == nil then
          raw_flows[key] = false
          keys[#keys + 1] = key
        end
      end
    end
  end
  if #keys > 0 then
    for i, raw in ipairs(call('HMGET', F, unpack(keys))) do
      raw_flows[keys[i]] = raw
    end
  end
end

do
  local p = process(me)
  p.before = p.digest
  heard_of(seen_epoch, seen_fence)
  -- The caller knows another pool, or was taken for dead.
  if seen_epoch > 0 and (seen_epoch ~= pool.epoch or not p.raw) then
    resync = true
  end
end

reap()
if pool.queued + pool.lobby > 0 then
  expire()
end

local answers = {}
for i, op in ipairs(ops) do
  subject = nil
  answers[i] = op.run(op)
end

flush_tickets()
flush_flows()
local repaired = beating and recheck() or 0
for i, op in ipairs(ops) do
  if op.run == later then
    answers[i] = op.after and page(op.after) or look(op)
  end
end
flush_processes()
local due = next_event()
flush_pool()
if waiting_at_first == 0 and pool.queued + pool.lobby > 0 then
  call('EXPIRE', W, KEPT)
end

local publishing = publish == 'S' and 'SPUBLISH' or 'PUBLISH'
local channel = sub(ST, 1, -3) .. 'to:'
for name, lines in pairs(messages) do
  call(publishing, channel .. name, table.concat(lines, '\n'))
end

return {
  now, pool.epoch, pool.fence, pool.in_use, pool.limit, pool.queued, pool.lobby, due, resync and 1 or 0, pool.version,
  repaired, answers, told,
}
