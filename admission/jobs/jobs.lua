-- One call about the durable jobs of a pool: a batch of operations on what is queued, delayed, running, dead and done.
--
-- KEYS, all in one cluster slot; the first two are the pool's own and only read. Everything is readable text; times are
-- microseconds that never go back, passes and charges thousandths of a cost unit.
--
--   st     HASH  of the pool: who waits there
--   lease  ZSET  of the pool: process -> when its lease ends
--   j:st       HASH  `queue`, and for each class `class<rank>`: names and values. `purge`: how far one is
--   j:job      HASH  id -> a job, see `core.decode`: its state says where else it stands
--   j:body     HASH  id -> what is to be run; never looked at
--   j:res      HASH  id -> its result, or its last error
--   j:ready    ZSET  who is queued, lexical: class, length of tenant, tenant, put number, id, charge
--   j:ring     ZSET  tenants with queued jobs, lexical: class, pass, tenant. So the first of a class is served next
--   j:debt     ZSET  tenants without any whose pass is ahead of their class, lexical alike; to forget the smallest
--   j:tag      HASH  class:tenant -> pass, queued, running
--   j:delayed  ZSET  lexical: when it is due, id
--   j:taken    ZSET  lexical: process, id. So a dead one's jobs are found without a scan
--   j:dead     ZSET  lexical: when it is forgotten, id
--   j:done     ZSET  lexical: when its result is forgotten, id
--   j:dedup    HASH  key -> the job that is queued, delayed or running with it
--   j:procs    HASH  process -> jobs it runs, 1 if it wants more
--   j:hungry   HASH  process -> what it wants, since when
--
-- ARGV  process, time or -, command to publish with, most jobs queued and delayed, most deliveries that may be lost,
--       microseconds a dead letter is kept; then the operations, each a verb and its arguments, see `ARITY`
--
-- Redis looks for free memory before a script's first write only, so a call is done whole or not at all. One that does
-- more than put begins with a deletion, which needs no memory: what ends can be said also where there is none left. One
-- that only puts begins with a write that does.
--
-- The functions are fields of one table, and those of rare operations are made on demand: Lua makes them anew in every
-- call.

local ST, LEASE, JST, JOB, BODY, RES, READY, RING, DEBT, TAG, DELAYED, TAKEN, DEAD, KEPT, DEDUP, PROCS, HUNGRY =
  unpack(KEYS)
local DONE, STALE, UNKNOWN, FULL, RUNNING = 1, 2, 3, 4, 5 -- answers, as `Said`
local floor, max, min = math.floor, math.max, math.min
local byte, format, gmatch, match, sub = string.byte, string.format, string.gmatch, string.match, string.sub
local me, now = ARGV[1], 0
local max_queue_size, most_lost, dead_ttl = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local call = redis.call
local core = {}
local pool = {
  time = nil, -- now, as it is written
  jobs = {}, -- by id: as it is kept, or taken apart once somebody has to look at it; false: there is no such job
  plain = nil, -- what is to be written of those that were not taken apart
  changed = {}, -- those of them to be written
  classes = {}, -- by rank
  flows = {}, -- tenants by class:tenant
  dedup = {}, -- by key: id, or false
  new_dedup = {}, -- keys to be written
  procs = {}, -- processes that have jobs here, or want some
  alive = {}, -- which of them have a lease
  moves = 1000, -- jobs one call moves at most besides those its operations name; the next call goes on
  fresh = {}, -- jobs that got ready in this call, by rank
  told = {}, -- what the caller is told
  messages = {}, -- and others, by process
}

-- ------------------------------------------------------------------ what is kept

function core.tell(process, line)
  if process == me then
    pool.told[#pool.told + 1] = line
    return
  end
  local lines = pool.messages[process]
  if lines then
    lines[#lines + 1] = line
  else
    pool.messages[process] = { line }
  end
end

-- Many words of one command, in as few as Lua can pass on.
function core.write(command, key, words)
  for i = 1, #words, 4000 do
    call(command, key, unpack(words, i, min(i + 3999, #words)))
  end
end

function core.read(key, names)
  if #names > 0 and #names <= 4000 then
    return call('HMGET', key, unpack(names))
  end
  local found = {}
  for i = 1, #names, 4000 do
    for _, value in ipairs(call('HMGET', key, unpack(names, i, min(i + 3999, #names)))) do
      found[#found + 1] = value
    end
  end
  return found
end

function core.class(rank)
  local c = pool.classes[rank]
  if not c then
    c = { rank = rank, queued = 0, delayed = 0, running = 0, paused = 0, virtual = 0, flows = {} }
    c.from, c.to = '[' .. rank .. ':', '(' .. rank .. ';'
    pool.classes[rank] = c
  end
  return c
end

function core.load_class(rank, raw)
  local c = core.class(rank)
  local queued, delayed, running, paused, virtual =
    match(raw, '^queued=(%S+) delayed=(%S+) running=(%S+) paused=(%S+) virtual=(%S+)$')
  c.raw = raw
  c.queued, c.delayed, c.running = tonumber(queued), tonumber(delayed), tonumber(running)
  c.paused, c.virtual = tonumber(paused), tonumber(virtual)
end

-- The account of one tenant in one class.
function core.flow(c, tenant, raw)
  local key = c.rank .. ':' .. tenant
  local f = pool.flows[key]
  if f then
    return f
  end
  if raw == nil then
    raw = call('HGET', TAG, key)
  end
  f = { key = key, class = c, tenant = tenant, raw = raw, pass = 0, queued = 0, running = 0 }
  f.prefix = format('%d:%05d:', c.rank, #tenant) .. tenant .. ':'
  if raw then
    local pass, queued, running = match(raw, '^(%d+) (%d+) (%d+)$')
    f.pass, f.queued, f.running = tonumber(pass), tonumber(queued), tonumber(running)
    f.ring = f.queued > 0 and core.ring_member(f) or nil
    f.debt = f.queued + f.running == 0 and core.ring_member(f) or nil
  end
  pool.flows[key] = f
  c.flows[#c.flows + 1] = f
  return f
end

function core.ring_member(f)
  return format('%d:%016d:', f.class.rank, f.pass) .. f.tenant
end

-- Those of some tenants, read at once.
function core.flows(c, tenants)
  local flows, missing = {}, {}
  for _, tenant in ipairs(tenants) do
    local key = c.rank .. ':' .. tenant
    if pool.flows[key] == nil then
      missing[#missing + 1] = key
    end
  end
  for i, raw in ipairs(core.read(TAG, missing)) do
    core.flow(c, sub(missing[i], 3), raw)
  end
  for i, tenant in ipairs(tenants) do
    flows[i] = core.flow(c, tenant)
  end
  return flows
end

-- state delivery by failures,lost,backs,first,started,at,expires watchers
-- rank number charge enqueued length-of-key key tenant
--
-- in one line. `by` is the process that runs it, or the kind of its death. `lost` counts deliveries to processes that
-- died since. `first` is when the first attempt was delivered, `started` the latest. `at` is when a delayed one is due,
-- and when another ended. What is said from `rank` on does not change. Most jobs come and go without anyone looking at
-- their history, so it is taken apart only when it is asked for.

function core.unfold(j)
  if j.history then
    j.failures, j.lost, j.backs, j.first, j.started, j.at, j.expires =
      match(j.history, '^(%d+),(%d+),(%d+),([^,]+),([^,]+),([^,]+),([^,]+)$')
    j.number, j.charge = match(j.fixed, '^%d (%d+) (%d+)')
    j.history = false
  end
end

local folded = {
  __index = function(j, name)
    core.unfold(j)
    return rawget(j, name)
  end,
}

function core.decode(id, record)
  local state, delivery, by, history, watchers, fixed, enqueued, length, text =
    match(record, '^(%l+) (%d+) (%S+) (%S+) (%S+) ()%d %d+ %d+ (%d+) (%d+) (.*)$')
  local dedup = ''
  if length ~= '0' then
    dedup, text = sub(text, 1, length), sub(text, 1 + length)
  end
  -- Made in one piece: a table that grows is copied again and again.
  return setmetatable({
    id = id, state = state, delivery = delivery, by = by, history = history, watchers = watchers,
    fixed = sub(record, fixed), rank = byte(record, fixed) - 48, enqueued = enqueued, dedup = dedup, tenant = text,
    stored = true, account = false, changed = false, moved = false, was_key = false, was = false, body = false,
    res = false,
  }, folded)
end

function core.encode(j)
  local history = j.history
    or j.failures .. ',' .. j.lost .. ',' .. j.backs .. ',' .. j.first .. ',' .. j.started .. ',' .. j.at .. ','
      .. j.expires
  return j.state .. ' ' .. j.delivery .. ' ' .. j.by .. ' ' .. history .. ' ' .. j.watchers .. ' ' .. j.fixed
end

function core.fix(j)
  j.fixed = j.rank .. ' ' .. j.number .. ' ' .. j.charge .. ' ' .. j.enqueued .. ' ' .. #j.dedup .. ' ' .. j.dedup
    .. j.tenant
end

-- In which line a job stands, and as what.
function core.place(j)
  local state = j.state
  if state == 'queued' then
    return READY, core.account(j).prefix .. j.number .. ':' .. j.id .. ':' .. j.charge
  elseif state == 'running' then
    return TAKEN, j.by .. ':' .. j.id
  elseif state == 'delayed' then
    return DELAYED, j.at .. ':' .. j.id
  elseif state == 'dead' then
    return DEAD, j.expires .. ':' .. j.id
  elseif state == 'done' then
    return KEPT, j.expires .. ':' .. j.id
  end
end

-- Remember where a job stands in the keys, before anything of that changes.
function core.leave_place(j)
  j.moved = true
  if j.stored and not j.was then
    j.was_key, j.was = core.place(j)
  end
end

function core.account(j)
  local f = j.account
  if not f then
    f = core.flow(core.class(j.rank), j.tenant)
    j.account = f
  end
  return f
end

-- Read those of these jobs that are not known yet.
function core.load(ids)
  local missing = {}
  for _, id in ipairs(ids) do
    if pool.jobs[id] == nil then
      missing[#missing + 1] = id
      pool.jobs[id] = false
    end
  end
  for i, record in ipairs(core.read(JOB, missing)) do
    if record then
      pool.jobs[missing[i]] = record
    end
  end
end

function core.account_of(record)
  local rank, length, text = match(record, '^%l+ %d+ %S+ %S+ %S+ (%d) %d+ %d+ %d+ (%d+) (.*)$')
  return rank .. ':' .. sub(text, length + 1)
end

function core.job(id)
  if pool.jobs[id] == nil then
    core.load({ id })
  end
  local j = pool.jobs[id]
  if type(j) == 'string' then
    core.flush_plain()
    j = core.decode(id, j)
    pool.jobs[id] = j
  end
  return j and j.state ~= 'gone' and j or nil
end

function core.change(j)
  if not j.changed then
    j.changed = true
    pool.changed[#pool.changed + 1] = j
  end
end

-- A tenant without queued jobs is about to have one.
function core.wake_tenant(f)
  if f.queued == 0 then
    f.pass = max(f.pass, f.class.virtual)
  end
end

-- When a job is due after some microseconds.
function core.due_after(delay)
  return format('%016d', now + delay)
end

-- Count a job in or out where it stands: 1 or -1.
function core.count(j, sign)
  local c, state = core.class(j.rank), j.state
  if state == 'delayed' then
    c.delayed = c.delayed + sign
  elseif state == 'queued' or state == 'running' then
    local f = core.account(j)
    if state == 'queued' then
      core.wake_tenant(f)
    end
    c[state], f[state] = c[state] + sign, f[state] + sign
    if state == 'running' then
      local p = core.process(j.by)
      p.running = p.running + sign
    end
  end
end

function core.process(name)
  local p = pool.procs[name]
  if not p then
    p = { running = 0, hungry = 0 }
    pool.procs[name] = p
  end
  return p
end

-- From where it is to another state.
function core.move(j, state)
  core.leave_place(j)
  core.count(j, -1)
  if j.state == 'running' then
    j.by = '-'
  end
  j.state = state
  core.count(j, 1)
  core.change(j)
end

function core.line_up(j)
  core.leave_place(j)
  core.unfold(j)
  j.at = '-'
  core.move(j, 'queued')
  pool.fresh[j.rank] = (pool.fresh[j.rank] or 0) + 1
end

-- Now, or after some microseconds.
function core.line_up_later(j, delay)
  if delay > 0 then
    core.leave_place(j)
    core.unfold(j)
    j.at = core.due_after(delay)
    core.move(j, 'delayed')
  else
    core.line_up(j)
  end
end

-- When nothing of a class is queued or runs, all passes start over from 0, so they never outgrow what a double holds
-- exactly.
function core.rest(c)
  if c.queued + c.running > 0 then
    return
  end
  local owing = call('ZRANGEBYLEX', DEBT, c.from, c.to, 'LIMIT', 0, 2048)
  local keys = {}
  for i, member in ipairs(owing) do
    keys[i] = c.rank .. ':' .. sub(member, 20)
  end
  core.write('ZREM', DEBT, owing)
  core.write('HDEL', TAG, keys)
  for _, f in ipairs(c.flows) do
    f.pass, f.debt = 0, nil
  end
  c.virtual = 0
end

-- It is over: whoever asked hears of it, and its key is free.
function core.finish(j)
  if j.dedup ~= '' and core.dedup(j.dedup) == j.id then
    core.set_dedup(j.dedup, false)
  end
  if j.watchers ~= '-' then
    for process in gmatch(j.watchers, '[^,]+') do
      core.tell(process, 'end ' .. j.id)
    end
    j.watchers = '-'
  end
  core.rest(core.class(j.rank))
end

function core.set_dedup(key, id)
  pool.dedup[key] = id
  pool.new_dedup[key] = true
end

function core.dedup(key)
  local id = pool.dedup[key]
  if id == nil then
    id = call('HGET', DEDUP, key)
    pool.dedup[key] = id
  end
  return id
end

-- Nothing more of it is kept.
function core.forget(j)
  core.move(j, 'gone')
  core.finish(j)
end

function core.watch(j, process)
  if process ~= '' and not string.find(',' .. j.watchers .. ',', ',' .. process .. ',', 1, true) then
    local watchers = j.watchers == '-' and process or j.watchers .. ',' .. process
    j.watchers = sub(watchers, -(17 * 32 - 1)) -- The newest 32.
    core.change(j)
  end
end

-- ------------------------------------------------------------------ writing

-- A job as it is kept; nothing when it was taken apart, or there is none.
function core.record(id)
  if pool.jobs[id] == nil then
    core.load({ id })
  end
  local j = pool.jobs[id]
  return type(j) == 'string' and j
end

-- Most jobs are put, taken and done, and never looked at: those three steps are done on what is kept, as it is kept.
function core.plainly(id, record, key, member, was_key, was)
  local plain = pool.plain
  if not plain then
    plain = { records = {}, bodies = {}, res = {}, off = {}, on = {} }
    pool.plain = plain
  end
  local records, on = plain.records, plain.on[key]
  local n = #records
  records[n + 1], records[n + 2] = id, record
  pool.jobs[id] = record
  if not on then
    on = {}
    plain.on[key] = on
  end
  n = #on
  on[n + 1], on[n + 2] = '0', member
  if was_key then
    local off = plain.off[was_key]
    if not off then
      off = {}
      plain.off[was_key] = off
    end
    off[#off + 1] = was
  end
  return plain
end

function core.flush_plain()
  local plain = pool.plain
  if plain then
    pool.plain = nil
    for key, members in pairs(plain.off) do
      core.write('ZREM', key, members)
    end
    for key, members in pairs(plain.on) do
      core.write('ZADD', key, members)
    end
    core.write('HSET', JOB, plain.records)
    core.write('HSET', BODY, plain.bodies)
    core.write('HSET', RES, plain.res)
  end
end

function core.flush_jobs()
  core.flush_plain()
  local changed = pool.changed
  if #changed == 0 then
    return
  end
  pool.changed = {}
  local records, bodies, res, gone, no_res = {}, {}, {}, {}, {}
  local added, removed = {}, {}
  for i = 1, #changed do
    local j = changed[i]
    local id = j.id
    j.changed = false
    if j.moved then
      local key, member = core.place(j)
      j.moved = false
      if j.was then
        local list = removed[j.was_key] or {}
        list[#list + 1], removed[j.was_key] = j.was, list
      end
      if member then
        local list = added[key] or {}
        list[#list + 1], list[#list + 2], added[key] = '0', member, list
      end
      j.was_key, j.was, j.stored = key, member, true
    end
    if j.state == 'gone' then
      gone[#gone + 1] = id
      if not j.history or sub(j.history, 1, 2) ~= '0,' then -- Else it never had any.
        no_res[#no_res + 1] = id
      end
      pool.jobs[id] = false
    else
      records[#records + 1], records[#records + 2] = id, core.encode(j)
      if j.body then
        bodies[#bodies + 1], bodies[#bodies + 2], j.body = id, j.body, false
      end
      if j.res then
        if j.res == '' then
          no_res[#no_res + 1] = id
        else
          res[#res + 1], res[#res + 2] = id, j.res
        end
        j.res = false
      end
    end
  end
  core.write('HDEL', JOB, gone)
  core.write('HDEL', BODY, gone)
  core.write('HDEL', RES, no_res)
  for key, members in pairs(removed) do
    core.write('ZREM', key, members)
  end
  core.write('HSET', JOB, records)
  core.write('HSET', BODY, bodies)
  core.write('HSET', RES, res)
  for key, members in pairs(added) do
    core.write('ZADD', key, members)
  end
end

function core.flush_flows()
  local gone, set, off_ring, on_ring, off_debt, on_debt = {}, {}, {}, {}, {}, {}
  for key, f in pairs(pool.flows) do
    local c = f.class
    local member = core.ring_member(f)
    local ring = f.queued > 0 and member or nil
    local debt = f.queued + f.running == 0 and f.pass > c.virtual and member or nil
    if ring ~= f.ring then
      off_ring[#off_ring + 1] = f.ring
      if ring then
        on_ring[#on_ring + 1], on_ring[#on_ring + 2] = '0', ring
      end
      f.ring = ring
    end
    if debt ~= f.debt then
      off_debt[#off_debt + 1] = f.debt
      if debt then
        on_debt[#on_debt + 1], on_debt[#on_debt + 2] = '0', debt
        c.owed = true
      end
      f.debt = debt
    end
    local raw = (ring or debt or f.running > 0) and format('%d %d %d', f.pass, f.queued, f.running)
    if raw ~= f.raw then
      if raw then
        set[#set + 1], set[#set + 2] = key, raw
      elseif f.raw then
        gone[#gone + 1] = key
      end
      f.raw = raw
    end
  end
  core.write('HDEL', TAG, gone)
  core.write('ZREM', RING, off_ring)
  core.write('ZREM', DEBT, off_debt)
  core.write('HSET', TAG, set)
  core.write('ZADD', RING, on_ring)
  core.write('ZADD', DEBT, on_debt)
end

-- A class remembers what absent tenants owe only while it means anything, and of 1024 tenants at most.
function core.forgive(c)
  local owing = call('ZRANGEBYLEX', DEBT, c.from, format('(%d:%016d;', c.rank, c.virtual), 'LIMIT', 0, 100)
  local most = call('ZLEXCOUNT', DEBT, c.from, c.to) - #owing - 1024
  if most > 0 then
    owing = call('ZRANGEBYLEX', DEBT, c.from, c.to, 'LIMIT', 0, #owing + most)
  end
  local keys = {}
  for i, member in ipairs(owing) do
    keys[i] = c.rank .. ':' .. sub(member, 20)
    pool.flows[keys[i]] = nil
  end
  core.write('ZREM', DEBT, owing)
  core.write('HDEL', TAG, keys)
end

function core.flush_dedup()
  local gone, set = {}, {}
  for key in pairs(pool.new_dedup) do
    local id = pool.dedup[key]
    if id then
      set[#set + 1], set[#set + 2] = key, id
    else
      gone[#gone + 1] = key
    end
  end
  pool.new_dedup = {}
  core.write('HDEL', DEDUP, gone)
  core.write('HSET', DEDUP, set)
end

function core.flush_procs()
  for name, p in pairs(pool.procs) do
    local raw = (p.running > 0 or p.hungry > 0) and p.running .. ' ' .. p.hungry or nil
    if raw ~= p.raw then
      if raw then
        call('HSET', PROCS, name, raw)
      else
        call('HDEL', PROCS, name)
      end
    end
  end
end

function core.flush_queue()
  local words = {
    'queue',
    format(
      'now=%d number=%d paused=%d enqueued=%d succeeded=%d failed=%d retried=%d handed_back=%d redelivered=%d dead=%d '
        .. 'stale=%d',
      now, pool.number, pool.paused, pool.enqueued, pool.succeeded, pool.failed, pool.retried, pool.handed_back,
      pool.redelivered, pool.dead, pool.stale
    ),
  }
  for rank, c in pairs(pool.classes) do
    if c.owed then -- Somebody was charged or left.
      core.forgive(c)
    end
    if c.queued + c.delayed + c.running + c.paused + c.virtual == 0 then
      if c.raw then
        call('HDEL', JST, 'class' .. rank)
      end
    else
      local raw = format(
        'queued=%d delayed=%d running=%d paused=%d virtual=%d', c.queued, c.delayed, c.running, c.paused, c.virtual
      )
      if raw ~= c.raw then
        words[#words + 1], words[#words + 2] = 'class' .. rank, raw
      end
    end
  end
  call('HSET', JST, unpack(words))
end

-- ------------------------------------------------------------------ what time does

function core.bury_it(j, kind, error)
  j.failures, j.at, j.expires, j.by, j.res = j.failures + 1, pool.time, format('%016d', now + dead_ttl), kind, error
  core.finish(j)
  pool.dead = pool.dead + 1
end

-- The jobs of a process come back to where they were.
function core.strip(name, died)
  local members = call('ZRANGEBYLEX', TAKEN, '[' .. name .. ':', '(' .. name .. ';', 'LIMIT', 0, pool.moves)
  local ids = {}
  for i, member in ipairs(members) do
    ids[i] = sub(member, 18)
  end
  core.load(ids)
  pool.moves = pool.moves - #ids
  for i, id in ipairs(ids) do
    local j = core.job(id)
    if not j then
      call('ZREM', TAKEN, members[i])
    elseif not died then
      core.refund(j)
      core.line_up(j)
      pool.handed_back = pool.handed_back + 1
    else
      j.lost = j.lost + 1
      if j.lost >= most_lost then
        core.move(j, 'dead')
        local times = j.lost == 1 and 'once' or j.lost .. ' times'
        core.bury_it(j, 'killed', '{"error": "the process that ran it died, ' .. times .. '", "traceback": ""}')
      else
        core.line_up(j)
        pool.redelivered = pool.redelivered + 1
      end
    end
  end
end

function core.sate(name)
  local p = core.process(name)
  if p.hungry > 0 then
    p.hungry = 0
    call('HDEL', HUNGRY, name)
  end
end

-- Look which processes live.
function core.look_for_life(asks)
  local stored = call('HGETALL', PROCS)
  local names = {}
  for i = 1, #stored, 2 do
    local running, hungry = match(stored[i + 1], '^(%d+) (%d+)$')
    pool.procs[stored[i]] = { raw = stored[i + 1], running = tonumber(running), hungry = tonumber(hungry) }
    names[#names + 1] = stored[i]
  end
  if asks and not pool.procs[me] then
    names[#names + 1] = me
  end
  if #names > 0 then
    for i, ends in ipairs(call('ZMSCORE', LEASE, unpack(names))) do
      pool.alive[names[i]] = ends and tonumber(ends) > now
    end
  end
end

function core.reap()
  for name, p in pairs(pool.procs) do
    if not pool.alive[name] then
      core.sate(name)
      if p.running > 0 and pool.moves > 0 then
        core.strip(name, true)
      end
    end
  end
end

-- What stands in one of the lines ordered by time, and its time has come.
function core.due(key, most)
  local ids = {}
  for i, member in ipairs(call('ZRANGEBYLEX', key, '-', format('(%016d;', now), 'LIMIT', 0, most)) do
    ids[i] = sub(member, 18)
  end
  return ids
end

function core.wake_delayed()
  local ids = core.due(DELAYED, pool.moves)
  core.load(ids)
  pool.moves = pool.moves - #ids
  for _, id in ipairs(ids) do
    local j = core.job(id)
    if j then
      core.line_up(j)
    end
  end
end

function core.expire(most)
  for _, key in ipairs({ DEAD, KEPT }) do
    local ids = core.due(key, most)
    if #ids > 0 then
      local members = call('ZRANGE', key, 0, #ids - 1)
      core.write('ZREM', key, members)
      core.write('HDEL', JOB, ids)
      core.write('HDEL', BODY, ids)
      core.write('HDEL', RES, ids)
      most = most - #ids
    end
  end
end

-- ------------------------------------------------------------------ operations

function core.room()
  if max_queue_size == 0 then
    return true
  end
  local total = 0
  for _, c in pairs(pool.classes) do
    total = total + c.queued + c.delayed
  end
  return total < max_queue_size
end

function core.put(id, rank, tenant, charge, delay, key, watcher, body)
  if core.job(id) then
    return DONE -- The reply to an earlier call was lost.
  end
  local other = key ~= '' and core.dedup(key)
  if other then
    return { 6, other }
  elseif not core.room() then
    return FULL
  end
  if key ~= '' then
    core.set_dedup(key, id)
  end
  pool.number, pool.enqueued = pool.number + 1, pool.enqueued + 1
  local number, due, state = format('%015d', pool.number), '-', 'queued'
  rank, delay = tonumber(rank), tonumber(delay)
  if delay > 0 then
    due, state = core.due_after(delay), 'delayed'
  end
  local record = state .. ' 0 - 0,0,0,-,-,' .. due .. ',- ' .. (watcher == '' and '-' or watcher) .. ' ' .. rank .. ' '
    .. number .. ' ' .. charge .. ' ' .. pool.time .. ' ' .. #key .. ' ' .. key .. tenant
  if delay > 0 then
    local j = core.decode(id, record)
    j.state, j.stored, j.body = 'new', false, body
    pool.jobs[id] = j
    core.move(j, state)
    return DONE
  end
  local c = core.class(rank)
  local f = core.flow(c, tenant)
  core.wake_tenant(f)
  c.queued, f.queued = c.queued + 1, f.queued + 1
  pool.fresh[rank] = (pool.fresh[rank] or 0) + 1
  local bodies = core.plainly(id, record, READY, f.prefix .. number .. ':' .. id .. ':' .. charge).bodies
  bodies[#bodies + 1], bodies[#bodies + 2] = id, body
  return DONE
end

-- Byte by byte, as in `j:ring`; Lua's own comparison goes by the server's locale.
function core.sorts_before(a, b)
  for i = 1, min(#a, #b) do
    local x, y = byte(a, i), byte(b, i)
    if x ~= y then
      return x < y
    end
  end
  return #a < #b
end

function core.served_before(f, g)
  return f.pass < g.pass or f.pass == g.pass and core.sorts_before(f.tenant, g.tenant)
end

-- Let a tenant sink to its place in a heap of them.
function core.sink(heap, i, size)
  local f = heap[i]
  while 2 * i <= size do
    local child = 2 * i
    if child < size and core.served_before(heap[child + 1], heap[child]) then
      child = child + 1
    end
    if not core.served_before(heap[child], f) then
      break
    end
    heap[i] = heap[child]
    i = child
  end
  heap[i] = f
end

function core.names(text)
  local names, seen = {}, {}
  for name in gmatch(text, '\n([^\n]*)') do
    if not seen[name] then
      seen[name] = true
      names[#names + 1] = name
    end
  end
  return names
end

-- Pick jobs in fair order, of some tenants or of all.
function core.pick(c, tenants, most, picked, members, takers)
  if tenants == '*' then
    core.flush_flows()
    local names = {}
    for i, member in ipairs(call('ZRANGEBYLEX', RING, c.from, c.to, 'LIMIT', 0, most - #picked)) do
      names[i] = sub(member, 20)
    end
    tenants = names
  else
    tenants = core.names(tenants)
  end
  local heap, size = {}, 0
  for _, f in ipairs(core.flows(c, tenants)) do
    if f.queued > 0 then
      size = size + 1
      heap[size] = f
      f.after, f.line, f.next = '[' .. f.prefix, {}, 1
    end
  end
  for i = floor(size / 2), 1, -1 do
    core.sink(heap, i, size)
  end
  local portion = size > 0 and floor((most - #picked) / size) + 1
  while size > 0 and #picked < most do
    local f = heap[1]
    local member = f.line[f.next]
    if not member then
      f.line = call('ZRANGEBYLEX', READY, f.after, '(' .. sub(f.prefix, 1, -2) .. ';', 'LIMIT', 0, portion)
      f.next, member = 1, f.line[1]
      portion = min(2 * portion, 256)
    end
    if not member then -- Its last is picked.
      f.gone = true
    else
      f.next, f.after = f.next + 1, '(' .. member
      local id, charge = match(member, '^(%x+):(%d+)$', #f.prefix + 17)
      picked[#picked + 1] = id
      members[#picked], takers[#picked] = member, f
      f.queued = f.queued - 1
      c.virtual = max(c.virtual, f.pass)
      f.pass = f.pass + tonumber(charge)
      f.gone = f.queued == 0
      c.owed = true
    end
    if f.gone then
      heap[1], heap[size], f.gone = heap[size], nil, nil
      size = size - 1
    end
    if size > 0 then
      core.sink(heap, 1, size)
    end
  end
end

function core.take(rank, most, tenants, steal)
  if not pool.alive[me] then
    return STALE
  end
  local c = core.class(tonumber(rank))
  local answer = { 7, c.rank }
  if pool.paused + c.paused > 0 or c.queued == 0 then
    return answer
  end
  core.flush_jobs()
  local picked, members, takers = {}, {}, {}
  most = min(tonumber(most), 256)
  core.pick(c, tenants, most, picked, members, takers)
  if #picked < most and tenants ~= '*' and steal ~= '=' then
    core.pick(c, steal, most, picked, members, takers)
  end
  if #picked == 0 then
    return answer
  end
  core.load(picked)
  local bodies = core.read(BODY, picked)
  local p = core.process(me)
  local times = pool.time .. ',' .. pool.time
  local begun, n = 'running 1 ' .. me .. ' 0,0,0,' .. times .. ',-,- ', 2
  for i = 1, #picked do
    local id = picked[i]
    local record, rest, enqueued = core.record(id), nil, nil
    if record then
      rest, enqueued = match(record, '^queued 0 %- 0,0,0,%-,%-,%-,%- (%S+ %d %d+ %d+ (%d+) .*)$')
    end
    local j = not rest and core.job(id)
    c.queued = c.queued - 1
    if rest then
      local f = takers[i]
      c.running, f.running, p.running = c.running + 1, f.running + 1, p.running + 1
      core.plainly(id, begun .. rest, TAKEN, me .. ':' .. id, READY, members[i])
      answer[n + 1], answer[n + 2] = id, '1 1 0 ' .. enqueued .. ' ' .. pool.time
      answer[n + 3], answer[n + 4] = f.tenant, bodies[i] or ''
      n = n + 4
    elseif j then
      local f = core.account(j)
      j.moved, j.was_key, j.was = true, READY, members[i]
      c.running, f.running, p.running = c.running + 1, f.running + 1, p.running + 1
      j.state, j.by, j.delivery = 'running', me, j.delivery + 1
      core.unfold(j)
      j.started, j.first = pool.time, j.first == '-' and pool.time or j.first
      core.change(j)
      answer[n + 1] = id
      answer[n + 2] = j.delivery .. ' ' .. j.failures + 1 .. ' ' .. j.backs .. ' ' .. j.enqueued .. ' ' .. j.first
      answer[n + 3], answer[n + 4] = j.tenant, bodies[i] or ''
      n = n + 4
    end
  end
  return answer
end

-- The job, if this process has that delivery of it.
function core.mine(id, delivery)
  local j = core.job(id)
  if j and j.state == 'running' and j.by == me and tonumber(j.delivery) == tonumber(delivery) then
    return j
  end
  pool.stale = pool.stale + 1
end

-- The usual case: the first delivery of a job that was never handed back, has no key, and for which nobody waits.
function core.done_plainly(id, delivery, result, ttl)
  local record = core.record(id)
  if not record or ttl <= 0 then
    return false
  end
  local number, by, first, started, fixed, rank, tenant =
    match(record, '^running (%d+) (%x+) 0,0,0,(%d+),(%d+),%-,%- %- ()(%d) %d+ %d+ %d+ 0 (.*)$')
  if by ~= me or number ~= delivery then
    return false
  end
  local c, p, expires = core.class(tonumber(rank)), core.process(me), format('%016d', now + ttl)
  local f = core.flow(c, tenant)
  c.running, f.running, p.running = c.running - 1, f.running - 1, p.running - 1
  local kept = 'done ' .. number .. ' - 1,0,0,' .. first .. ',' .. started .. ',' .. pool.time .. ',' .. expires .. ' - '
    .. sub(record, fixed)
  local res = core.plainly(id, kept, KEPT, expires .. ':' .. id, TAKEN, me .. ':' .. id).res
  res[#res + 1], res[#res + 2] = id, result
  core.rest(c)
  return true
end

function core.done(id, delivery, result, ttl)
  ttl = tonumber(ttl)
  if core.done_plainly(id, delivery, result, ttl) then
    pool.succeeded = pool.succeeded + 1
    return DONE
  end
  local j = core.mine(id, delivery)
  if not j then
    return STALE
  end
  pool.succeeded = pool.succeeded + 1
  if ttl > 0 then
    core.move(j, 'done')
    j.failures, j.at, j.expires, j.by, j.res = j.failures + 1, pool.time, format('%016d', now + ttl), '-', result
    core.finish(j)
  else
    core.forget(j)
  end
  return DONE
end

function core.retry(id, delivery, delay, error)
  local j = core.mine(id, delivery)
  if not j then
    return STALE
  end
  pool.failed, pool.retried = pool.failed + 1, pool.retried + 1
  j.failures, j.res = j.failures + 1, error
  core.line_up_later(j, tonumber(delay))
  core.rest(core.class(j.rank))
  return DONE
end

-- It was not run: its tenant is not charged.
function core.refund(j)
  local f = core.account(j)
  f.pass = max(0, f.pass - tonumber(j.charge))
  if j.failures + j.lost == 0 then
    j.first = '-'
  end
end

function core.back(id, delivery, delay, counted)
  local j = core.mine(id, delivery)
  if not j then
    return STALE
  end
  pool.handed_back = pool.handed_back + 1
  j.backs = j.backs + tonumber(counted)
  core.refund(j)
  core.line_up_later(j, tonumber(delay))
  core.rest(core.class(j.rank))
  return DONE
end

local FAILURES = { failed = 1, timeout = 1, permanent = 1, ['bad-result'] = 1 }

function core.bury(id, delivery, kind, error)
  local j = core.mine(id, delivery)
  if not j then
    return STALE
  end
  pool.failed = pool.failed + (FAILURES[kind] or 0)
  core.move(j, 'dead')
  core.bury_it(j, kind, error)
  return DONE
end

-- Whether there is something this process would take of a class.
function core.serves(c, tenants, steal)
  if c.queued == 0 or pool.paused + c.paused > 0 then
    return false
  elseif tenants == '*' or steal == '*' then
    return true
  end
  for _, text in ipairs({ tenants, steal }) do
    for _, f in ipairs(core.flows(c, core.names(text))) do
      if f.queued > 0 then
        return true
      end
    end
  end
  return false
end

function core.want(ranks, tenants, steal)
  if not pool.alive[me] then
    return STALE
  end
  for rank in gmatch(ranks, '%d') do
    if core.serves(core.class(tonumber(rank)), tenants, steal) then
      core.sate(me)
      core.tell(me, 'wake ' .. rank)
      return DONE
    end
  end
  pool.number = pool.number + 1
  call('HSET', HUNGRY, me, format('%d %s %d ', pool.number, ranks, #tenants) .. tenants .. steal)
  core.process(me).hungry = 1
  return DONE
end

-- Tell who wants them that jobs are ready: one process for each that is new.
function core.wake()
  local hungry = {}
  for _, p in pairs(pool.procs) do
    pool.anyone = pool.anyone or p.hungry > 0
  end
  if not pool.anyone or not next(pool.fresh) then
    return
  end
  local stored = call('HGETALL', HUNGRY)
  for i = 1, #stored, 2 do
    local number, ranks, length, text = match(stored[i + 1], '^(%d+) (%d*) (%d+) (.*)$')
    length = tonumber(length)
    hungry[#hungry + 1] = {
      name = stored[i], number = tonumber(number), ranks = ranks, tenants = sub(text, 1, length),
      steal = sub(text, length + 1),
    }
  end
  table.sort(hungry, function(a, b)
    return a.number < b.number
  end)
  for _, process in ipairs(hungry) do
    for rank in gmatch(process.ranks, '%d') do
      local c = core.class(tonumber(rank))
      local left = min(pool.fresh[c.rank] or 0, c.queued)
      if left > 0 and core.serves(c, process.tenants, process.steal) then
        pool.fresh[c.rank] = left - 1
        core.sate(process.name)
        core.tell(process.name, 'wake ' .. rank)
        break
      end
    end
  end
end

function core.tick()
  return DONE
end

-- ------------------------------------------------------------------ what is rarely asked

local function rarely()
  function core.cancel(id)
    local j = core.job(id)
    if j and j.state == 'running' then
      core.tell(j.by, 'cancel ' .. id)
      return RUNNING
    elseif not j or j.state == 'done' or j.state == 'dead' then
      return UNKNOWN
    end
    core.forget(j)
    return DONE
  end

  -- A job as it is kept; all is written.
  function core.describe(j, body, res)
    local attempt, position, queued = tonumber(j.failures), 0, j.state == 'queued'
    if queued then
      local _, member = core.place(j)
      position = 1 + call('ZLEXCOUNT', READY, '[' .. core.account(j).prefix, '(' .. member)
    elseif j.state == 'running' then
      attempt = attempt + 1
    end
    local ended = (j.state == 'done' or j.state == 'dead') and j.at or '-'
    return {
      8, j.id, j.state, j.rank, j.tenant, attempt, tonumber(j.delivery), j.enqueued, j.state == 'delayed' and j.at or '-',
      j.started, ended, position, j.state == 'dead' and j.by or '', res or '', body or '',
    }
  end

  function core.look(id, watcher)
    local j = core.job(id)
    if not j then
      return UNKNOWN
    end
    if j.state ~= 'done' and j.state ~= 'dead' then
      core.watch(j, watcher)
    end
    core.flush_jobs()
    return core.describe(j, call('HGET', BODY, id), call('HGET', RES, id))
  end

  local LINES = { queued = READY, delayed = DELAYED, running = TAKEN, dead = DEAD, done = KEPT }

  -- Some of the jobs in one state: those that match, and the last one looked at if there may be more.
  function core.page(state, rank, tenant, after, most)
    core.flush_jobs()
    local key, from, to = LINES[state], '-', '+'
    if state == 'queued' and rank ~= '-' then
      local c = core.class(tonumber(rank))
      from, to = c.from, c.to
      if tenant ~= '*' then
        local prefix = core.flow(c, sub(tenant, 2)).prefix
        from, to = '[' .. prefix, '(' .. sub(prefix, 1, -2) .. ';'
      end
    end
    local members = call('ZRANGEBYLEX', key, after == '' and from or '(' .. after, to, 'LIMIT', 0, most)
    local ids = {}
    for i, member in ipairs(members) do
      ids[i] = state == 'queued' and match(member, ':(%x+):%d+$') or sub(member, 18)
    end
    core.load(ids)
    local found = {}
    for _, id in ipairs(ids) do
      local j = core.job(id)
      if j and (rank == '-' or j.rank == tonumber(rank)) and (tenant == '*' or j.tenant == sub(tenant, 2)) then
        found[#found + 1] = j
      end
    end
    return found, #members == most and members[most] or ''
  end

  function core.ls(state, rank, tenant, after, most)
    local found, last = core.page(state, rank, tenant, after, min(tonumber(most), 256))
    local ids, records = {}, {}
    for i, j in ipairs(found) do
      ids[i] = j.id
    end
    local bodies, results = core.read(BODY, ids), core.read(RES, ids)
    for i, j in ipairs(found) do
      records[i] = core.describe(j, bodies[i], results[i])
    end
    return { 9, last, records }
  end

  -- A purge with a filter goes on where the last portion ended, else it would look at the same jobs for ever.
  function core.purge(state, rank, tenant)
    local what = state .. ' ' .. rank .. ' ' .. tenant .. '\n'
    local stored = call('HGET', JST, 'purge') or ''
    local after = sub(stored, 1, #what) == what and sub(stored, #what + 1) or ''
    local found, last = core.page(state, rank, tenant, after, 1000)
    for _, j in ipairs(found) do
      core.forget(j)
    end
    if last ~= '' then
      call('HSET', JST, 'purge', what .. last)
    else
      call('HDEL', JST, 'purge')
    end
    return { 10, #found, last ~= '' and 1 or 0 }
  end

  -- What this process has, a page of it: for whoever missed the reply to a take.
  function core.here(after)
    core.flush_jobs()
    local from = after == '' and '[' .. me .. ':' or '(' .. me .. ':' .. after
    local members = call('ZRANGEBYLEX', TAKEN, from, '(' .. me .. ';', 'LIMIT', 0, 256)
    local ids, answer = {}, { 12, #members == 256 and 1 or 0 }
    for i, member in ipairs(members) do
      ids[i] = sub(member, 18)
    end
    core.load(ids)
    for _, id in ipairs(ids) do
      local j = core.job(id)
      if j then
        answer[#answer + 1], answer[#answer + 2] = id, tonumber(j.delivery)
      end
    end
    return answer
  end

  function core.requeue(id)
    local j = core.job(id)
    if not j or j.state ~= 'dead' then
      return UNKNOWN
    elseif not core.room() then
      return FULL
    end
    if j.dedup ~= '' then
      if core.dedup(j.dedup) then
        j.dedup = '' -- Another has it now.
      else
        core.set_dedup(j.dedup, id)
      end
    end
    pool.number = pool.number + 1
    core.leave_place(j)
    core.unfold(j)
    j.number, j.failures, j.lost, j.delivery, j.backs = format('%015d', pool.number), '0', '0', '0', '0'
    j.first, j.started, j.at, j.expires, j.by, j.res = '-', '-', '-', '-', '-', ''
    j.enqueued = pool.time
    core.fix(j)
    core.line_up(j)
    return DONE
  end

  function core.drop(id)
    local j = core.job(id)
    if not j or (j.state ~= 'dead' and j.state ~= 'done') then
      return UNKNOWN
    end
    core.forget(j)
    return DONE
  end

  function core.pause(rank)
    if rank == '-' then
      pool.paused = 1
    else
      core.class(tonumber(rank)).paused = 1
    end
    return DONE
  end

  function core.resume(rank)
    if rank == '-' then
      pool.paused = 0
    else
      core.class(tonumber(rank)).paused = 0
    end
    for i, c in pairs(pool.classes) do
      if rank == '-' or i == tonumber(rank) then
        pool.fresh[i] = c.queued
      end
    end
    return DONE
  end

  function core.leave()
    core.sate(me)
    core.flush_jobs()
    core.strip(me, false)
    return DONE
  end

  -- Since when the first queued job of a class is there: its tenants' first ones, of very many those to be served next.
  function core.oldest(c)
    local ids = {}
    for i, member in ipairs(call('ZRANGEBYLEX', RING, c.from, c.to, 'LIMIT', 0, 256)) do
      local f = core.flow(c, sub(member, 20))
      local first = call('ZRANGEBYLEX', READY, '[' .. f.prefix, '+', 'LIMIT', 0, 1)[1]
      ids[i] = match(first, ':(%x+):%d+$')
    end
    core.load(ids)
    local oldest
    for _, id in ipairs(ids) do
      local j = core.job(id)
      oldest = j and min(oldest or j.enqueued, tonumber(j.enqueued)) or oldest
    end
    return oldest or 0
  end

  -- The busiest tenants; of very many, among those that are found first.
  function core.busiest(most)
    local raw = call('HLEN', TAG) <= 1000 and call('HGETALL', TAG) or call('HSCAN', TAG, '0', 'COUNT', '1000')[2]
    local found = {}
    for i = 1, #raw, 2 do
      local queued, running = match(raw[i + 1], '^%d+ (%d+) (%d+)$')
      queued, running = tonumber(queued), tonumber(running)
      if queued + running > 0 then
        found[#found + 1] = { byte(raw[i]) - 48, sub(raw[i], 3), queued, running }
      end
    end
    table.sort(found, function(a, b)
      local x, y = a[3] + a[4], b[3] + b[4]
      if x ~= y then
        return x > y
      elseif a[1] ~= b[1] then
        return a[1] < b[1]
      end
      return core.sorts_before(a[2], b[2])
    end)
    for i = #found, most + 1, -1 do
      found[i] = nil
    end
    return found
  end

  -- Answered when all else is written.
  function core.stats()
    return 'stats'
  end

  function core.look_at_all()
    local classes = {}
    for rank = 0, 7 do
      local c = core.class(rank)
      classes[rank + 1] = { c.queued, c.delayed, c.running, c.paused, c.queued > 0 and core.oldest(c) or 0 }
    end
    local counters = {
      pool.enqueued, pool.succeeded, pool.failed, pool.retried, pool.handed_back, pool.redelivered, pool.dead,
      pool.stale,
    }
    return {
      11, pool.paused, call('ZCARD', DEAD), call('ZCARD', KEPT), call('HLEN', PROCS), counters, classes,
      core.busiest(50),
    }
  end
end

-- ------------------------------------------------------------------ the call

setmetatable(core, {
  __index = function(_, name)
    setmetatable(core, nil)
    rarely()
    return core[name]
  end,
})

-- Verbs and how many words they take, their own among them.
local ARITY = {
  put = 9, -- id, class, tenant, charge, delay, key, watcher, body
  take = 5, -- class, how many, tenants, of whom to steal
  want = 4, -- classes, tenants, of whom to steal
  done = 5, -- id, delivery, result, time to live
  retry = 5, -- id, delivery, delay, error
  back = 5, -- id, delivery, delay, 1 if it is counted
  bury = 5, -- id, delivery, kind, error
  cancel = 2, -- id
  look = 3, -- id, watcher
  ls = 6, -- state, class or -, tenant or *, after, how many
  here = 2, -- after which id
  requeue = 2, -- id
  drop = 2, -- id
  purge = 4, -- state, class or -, tenant or *
  pause = 2, -- class or -
  resume = 2, -- class or -
  stats = 1,
  leave = 1,
  tick = 1,
}

local NAMES_ONE = { put = 1, done = 1, retry = 1, back = 1, bury = 1, cancel = 1, look = 1, requeue = 1, drop = 1 }

-- What the operations name is read at once.
local ids, keys = {}, {}
local accounts, noted = {}, {}
local only_puts, asks_for_jobs = true, false

local function note(key)
  if not noted[key] then
    noted[key] = true
    accounts[#accounts + 1] = key
  end
end

do
  local i = 7
  while i <= #ARGV do
    local verb = ARGV[i]
    local arity = ARITY[verb]
    if not arity or i + arity - 1 > #ARGV then
      return redis.error_reply('ERR not an operation on jobs: ' .. sub(verb, 1, 60))
    end
    if NAMES_ONE[verb] then
      ids[#ids + 1] = ARGV[i + 1]
    end
    if verb == 'put' then
      note(ARGV[i + 2] .. ':' .. ARGV[i + 3])
      if ARGV[i + 6] ~= '' then
        keys[#keys + 1] = ARGV[i + 6]
      end
    else
      only_puts = false
      asks_for_jobs = asks_for_jobs or verb == 'take' or verb == 'want'
    end
    i = i + arity
  end
end

do
  local stored =
    call('HMGET', JST, 'queue', 'class0', 'class1', 'class2', 'class3', 'class4', 'class5', 'class6', 'class7')
  local queue = stored[1]
    or 'now=0 number=0 paused=0 enqueued=0 succeeded=0 failed=0 retried=0 handed_back=0 redelivered=0 dead=0 stale=0'
  for name, value in gmatch(queue, '(%S+)=(%S+)') do
    pool[name] = tonumber(value)
  end
  now = pool.now
  for rank = 0, 7 do
    if stored[rank + 2] then
      core.load_class(rank, stored[rank + 2])
    end
  end
  -- Clocks are set back and replicas' clocks differ: then time stands still until it has caught up.
  if ARGV[2] == '-' then
    local time = call('TIME')
    now = max(now, time[1] * 1e6 + time[2])
  else
    now = max(now, tonumber(ARGV[2]))
  end
  pool.time = format('%d', now)
  if only_puts then
    call('HSET', JST, 'queue', queue)
  else
    call('HDEL', JOB, '-')
  end
end

core.expire(100 + 2 * #ids)
core.load(ids)
for _, id in ipairs(ids) do
  local record = core.record(id)
  if record then
    note(core.account_of(record))
  end
end
for i, raw in ipairs(core.read(TAG, accounts)) do
  core.flow(core.class(byte(accounts[i]) - 48), sub(accounts[i], 3), raw)
end
for i, id in ipairs(core.read(DEDUP, keys)) do
  pool.dedup[keys[i]] = id
end
core.look_for_life(asks_for_jobs)
core.reap()
if pool.moves > 0 then
  core.wake_delayed()
end

local answers, n = {}, 0
do
  local i = 7
  while i <= #ARGV do
    local verb = ARGV[i]
    n = n + 1
    answers[n] = core[verb](unpack(ARGV, i + 1, i + ARITY[verb] - 1))
    i = i + ARITY[verb]
  end
end

core.flush_jobs()
core.wake()
core.flush_flows()
core.flush_dedup()
core.flush_procs()
for i = 1, n do
  if answers[i] == 'stats' then
    answers[i] = core.look_at_all()
  end
end
core.flush_queue()

local first = call('ZRANGE', DELAYED, 0, 0)[1]
local waiting = match(call('HGET', ST, 'pool') or '', ' queued=%d+ lobby=%d+')
local ready = {}
for rank = 0, 7 do
  local c = pool.classes[rank]
  ready[rank + 1] = c and pool.paused + c.paused == 0 and c.queued or 0
end
if waiting then
  local queued, lobby = match(waiting, ' queued=(%d+) lobby=(%d+)')
  waiting = queued + lobby
end

for name, lines in pairs(pool.messages) do
  call(ARGV[3], sub(ST, 1, -3) .. 'j:to:' .. name, table.concat(lines, '\n'))
end

return { now, ready, first and tonumber(sub(first, 1, 16)) or -1, waiting or 0, answers, pool.told }
