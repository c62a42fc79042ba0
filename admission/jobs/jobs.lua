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
--       microseconds a dead letter is kept; then the operations: a verb, how many of it follow one another, and the
--       arguments of each, see `ARITY`
--
-- Redis looks for free memory before a script's first write only, so a call is done whole or not at all. One that does
-- more than put begins with a deletion, which needs no memory: what ends can be said also where there is none left. One
-- that only puts begins with a write that does.
--
-- Most jobs are put, taken and done, and never looked at. Those three steps are done on records as they are kept, see
-- `usual`; whatever else becomes of a job takes its record apart, see `apart`. The functions are fields of one table
-- and made on demand, as Lua makes them anew in every call.

local ST, LEASE, JST, JOB, BODY, RES, READY, RING, DEBT, TAG, DELAYED, TAKEN, DEAD, KEPT, DEDUP, PROCS, HUNGRY =
  unpack(KEYS)
local DONE, STALE, UNKNOWN, FULL, RUNNING = 1, 2, 3, 4, 5 -- answers, as `Said`
local floor, max, min = math.floor, math.max, math.min
local byte, find, format, gmatch = string.byte, string.find, string.format, string.gmatch
local match, sub = string.match, string.sub
local ARGV, ipairs, pairs, tonumber, type, unpack = ARGV, ipairs, pairs, tonumber, type, unpack
local max_queue_size, most_lost, dead_ttl = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local me, now = ARGV[1], 0
local call = redis.call
local core = {}
local pool = {
  time = nil, -- now, as it is written
  jobs = {}, -- by id: as it is kept, or taken apart once somebody has to look at it; false: there is no such job
  changed = {}, -- those of them that were taken apart and are to be written
  plain = nil, -- what is to be written of those that were not
  kinds = {}, -- what jobs have in common, see `core.kind` and `core.manner`
  manners = {},
  classes = {}, -- by rank
  flows = {}, -- tenants by class:tenant
  free = nil, -- how many more may be put; nil when that has to be counted
  dedup = {}, -- by key: id, or false
  new_dedup = {}, -- keys to be written
  procs = {}, -- processes that have jobs here, or want some
  alive = {}, -- which of them have a lease
  wanted = false, -- whether one of them wants some
  asked = false, -- whether `stats` were
  moves = 1000, -- jobs one call moves at most besides those its operations name; the next call goes on
  told = {}, -- what the caller is told
  messages = {}, -- and others, by process
}

-- ------------------------------------------------------------------ what usually happens

local function usual()
  -- A record of a job that was only put, up to its number; and one of its first delivery, to this process.
  local QUEUED = 'queued 0 - 0,0,0,-,-,-,- '
  local BEGUN = 'running 1 ' .. me .. ' 0,0,0,'
  local jobs, kinds, manners = pool.jobs, pool.kinds, pool.manners

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

  -- Read those of these jobs that are not known yet.
  function core.load(ids)
    local missing = {}
    for _, id in ipairs(ids) do
      if jobs[id] == nil then
        missing[#missing + 1] = id
      end
    end
    for i, record in ipairs(core.read(JOB, missing)) do
      jobs[missing[i]] = record
    end
  end

  function core.class(rank)
    local c = pool.classes[rank]
    if not c then
      c = {
        rank = rank, raw = false, queued = 0, delayed = 0, running = 0, paused = 0, virtual = 0, fresh = 0, owed = false,
        flows = {}, from = '[' .. rank .. ':', to = '(' .. rank .. ';',
      }
      pool.classes[rank] = c
    end
    return c
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
    f = {
      key = key, class = c, tenant = tenant, raw = raw, pass = 0, queued = 0, running = 0,
      prefix = format('%d:%05d:', c.rank, #tenant) .. tenant .. ':',
      rung = false, -- its pass in the ring
      owes = false, -- its pass among the debts
    }
    if raw then
      local pass, queued, running = match(raw, '^(%d+) (%d+) (%d+)$')
      f.pass, f.queued, f.running = tonumber(pass), tonumber(queued), tonumber(running)
      f.rung = f.queued > 0 and f.pass
      f.owes = f.queued + f.running == 0 and f.pass
    end
    pool.flows[key] = f
    c.flows[#c.flows + 1] = f
    return f
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

  -- What does not change in a job, and many have in common: it is taken apart once.
  function core.kind(what)
    local rank, charge, length, text = match(what, '^(%d) (%d+) (%d+) (.*)$')
    local kind = {
      what = what, rank = tonumber(rank), charge = charge, key = sub(text, 1, length), tenant = sub(text, 1 + length),
      account = false,
    }
    kinds[what] = kind
    return kind
  end

  function core.account(kind)
    kind.account = core.flow(core.class(kind.rank), kind.tenant)
    return kind.account
  end

  -- How a job is put: microseconds until it is ready, who is told when it has ended or -, and what.
  function core.manner(how)
    local delay, watcher, what = match(how, '^(%d+) (%S+) (.*)$')
    local kind = kinds[what] or core.kind(what)
    local manner = {
      kind = kind, delay = tonumber(delay), rest = ' ' .. pool.time .. ' ' .. watcher .. ' ' .. what,
      suffix = ':' .. kind.charge,
    }
    manners[how] = manner
    return manner
  end

  function core.process(name)
    local p = pool.procs[name]
    if not p then
      p = { raw = false, running = 0, hungry = 0 }
      pool.procs[name] = p
    end
    return p
  end

  -- A tenant without queued jobs is about to have one.
  function core.wake_tenant(f)
    f.pass = max(f.pass, f.class.virtual)
  end

  -- When nothing of a class is queued or runs, all passes start over from 0, so they never outgrow what a double holds
  -- exactly.
  function core.rest(c)
    local owing = call('ZRANGEBYLEX', DEBT, c.from, c.to, 'LIMIT', 0, 2048)
    local keys = {}
    for i, member in ipairs(owing) do
      keys[i] = c.rank .. ':' .. sub(member, 20)
    end
    core.write('ZREM', DEBT, owing)
    core.write('HDEL', TAG, keys)
    for _, f in ipairs(c.flows) do
      f.pass, f.owes = 0, false
    end
    c.virtual = 0
  end

  -- ---------------------------------------------------------------- put, take, done

  -- Whether one more job may be put.
  function core.room()
    if not pool.free then
      pool.free = max_queue_size
      for _, c in pairs(pool.classes) do
        pool.free = pool.free - c.queued - c.delayed
      end
    end
    return pool.free > 0
  end

  -- What is to be written of jobs that were not taken apart.
  function core.plain()
    pool.plain = { records = {}, bodies = {}, ready = {}, kept = {}, results = {}, taken = {}, gone = {} }
    return pool.plain
  end

  -- What goes before what comes: an id may be put again in the call that ended it.
  function core.flush_plain()
    local plain = pool.plain
    if plain then
      pool.plain = nil
      core.write('ZREM', TAKEN, plain.taken)
      core.write('HDEL', JOB, plain.gone)
      core.write('HDEL', BODY, plain.gone)
      core.write('HSET', JOB, plain.records)
      core.write('HSET', BODY, plain.bodies)
      core.write('HSET', RES, plain.results)
      core.write('ZADD', READY, plain.ready)
      core.write('ZADD', KEPT, plain.kept)
    end
  end

  function core.flush_jobs()
    core.flush_plain()
    if pool.changed[1] then
      core.flush_changed()
    end
  end

  function core.put(id, how, body, follows)
    local j = jobs[id]
    if j then
      if type(j) == 'string' or j.state ~= 'gone' then
        return DONE -- The reply to an earlier call was lost.
      end
      core.flush_jobs()
    end
    local manner = manners[how] or core.manner(how)
    local kind = manner.kind
    local key = kind.key
    local other = key ~= '' and core.dedup(key)
    if other then
      return { 6, other }
    elseif max_queue_size > 0 and not follows and not core.room() then
      return FULL
    elseif key ~= '' then
      core.set_dedup(key, id)
    end
    pool.number, pool.enqueued = pool.number + 1, pool.enqueued + 1
    local number = format('%015d', pool.number)
    local record = QUEUED .. number .. manner.rest
    if manner.delay > 0 then
      core.put_later(id, record, manner.delay, body)
      return DONE
    end
    local f = kind.account or core.account(kind)
    local c = f.class
    if f.queued == 0 then
      core.wake_tenant(f)
    end
    c.queued, f.queued, c.fresh = c.queued + 1, f.queued + 1, c.fresh + 1
    pool.free = pool.free and pool.free - 1
    local plain = pool.plain or core.plain()
    local records, bodies, ready = plain.records, plain.bodies, plain.ready
    local n = #records
    records[n + 1], records[n + 2] = id, record
    n = #ready
    bodies[n + 1], bodies[n + 2] = id, body
    ready[n + 1], ready[n + 2] = '0', f.prefix .. number .. ':' .. id .. manner.suffix
    jobs[id] = record
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

  local function served_before(f, g)
    local p, q = f.pass, g.pass
    if p ~= q then
      return p < q
    end
    p, q = f.order, g.order
    return p < q or p == q and core.sorts_before(f.tenant, g.tenant)
  end

  -- Have each tenant say by a number where its name sorts: six bytes of it, after those that all have in common.
  local function note_order(flows)
    local common = flows[1] and flows[1].tenant
    for _, f in ipairs(flows) do
      while sub(f.tenant, 1, #common) ~= common do
        common = sub(common, 1, -2)
      end
    end
    for _, f in ipairs(flows) do
      local order, first = 0, #common + 1
      for i = first, first + 5 do
        order = order * 256 + (byte(f.tenant, i) or 0)
      end
      f.order = order
    end
  end

  -- Where in a sorted line, between two places, a tenant belongs.
  local function place_of(f, line, first, last)
    while first < last do
      local middle = floor((first + last) / 2)
      if served_before(f, line[middle]) then
        last = middle
      else
        first = middle + 1
      end
    end
    return first
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

  -- Tenants in the order of service.
  function core.first_tenants(c, most)
    core.flush_ring()
    local names = {}
    for i, member in ipairs(call('ZRANGEBYLEX', RING, c.from, c.to, 'LIMIT', 0, most)) do
      names[i] = sub(member, 20)
    end
    return names
  end

  -- Pick jobs in fair order, of some tenants or of all: ids, where they stand, and whose they are.
  function core.pick(c, tenants, most, ids, members, takers)
    local names = tenants == '*' and core.first_tenants(c, most - #ids) or core.names(tenants)
    local line, last = {}, 0
    for _, f in ipairs(core.flows(c, names)) do
      if f.queued > 0 then
        last = last + 1
        line[last] = f
      end
    end
    note_order(line)
    if tenants ~= '*' then
      table.sort(line, served_before)
    end
    local n, first, virtual, portion = #ids, 1, c.virtual, floor((most - #ids) / max(1, last)) + 1
    for _, f in ipairs(line) do
      f.after, f.jobs, f.next, f.at, f.portion = '[' .. f.prefix, {}, 1, #f.prefix + 17, portion
    end
    while first <= last and n < most do
      local f = line[first]
      local member = f.jobs[f.next]
      if not member then
        f.jobs = call('ZRANGEBYLEX', READY, f.after, '(' .. sub(f.prefix, 1, -2) .. ';', 'LIMIT', 0, f.portion)
        f.next, member = 1, f.jobs[1]
        f.after, f.portion = '(' .. (f.jobs[#f.jobs] or ''), min(2 * f.portion, 256)
      end
      if member then
        n = n + 1
        ids[n], members[n], takers[n] = sub(member, f.at, f.at + 23), member, f
        local pass = f.pass
        virtual = pass > virtual and pass or virtual
        f.next, f.queued, f.pass = f.next + 1, f.queued - 1, pass + sub(member, f.at + 25)
      end
      if not member or f.queued == 0 then -- Its last is picked.
        first = first + 1
      elseif first < last and served_before(line[first + 1], f) then
        first, last = first + 1, last + 1
        if served_before(line[last - 1], f) then -- As with equal charges.
          line[last] = f
        else
          table.insert(line, place_of(f, line, first, last - 1), f)
        end
      end
    end
    c.virtual = virtual
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
    local ids, members, takers = {}, {}, {}
    most = min(tonumber(most), 256)
    core.pick(c, tenants, most, ids, members, takers)
    if #ids < most and tenants ~= '*' and steal ~= '=' then
      core.pick(c, steal, most, ids, members, takers)
    end
    local n = #ids
    if n == 0 then
      return answer
    end
    local found, bodies = core.read(JOB, ids), core.read(BODY, ids)
    local records, taken, k = {}, {}, 0
    local begun, mine = BEGUN .. pool.time .. ',' .. pool.time .. ',-,- ', me .. ':'
    local last, fresh = ' ' .. pool.time .. ' ', #QUEUED
    for i = 1, n do
      local id, f, record, told = ids[i], takers[i], found[i], nil
      if record then -- Else somebody else has deleted it.
        if find(record, QUEUED, 1, true) == 1 then
          told = id .. ' 1 1 0 0 ' .. sub(record, fresh + 17, fresh + 32) .. last .. f.tenant
          record = begun .. sub(record, fresh + 1)
        else
          record, told = core.deliver(id, record)
        end
        jobs[id] = record
        f.running = f.running + 1
        answer[k + 3], answer[k + 4] = told, bodies[i] or ''
        records[k + 1], records[k + 2] = id, record
        taken[k + 1], taken[k + 2] = '0', mine .. id
        k = k + 2
      end
    end
    local p = core.process(me)
    c.queued, c.running, p.running = c.queued - n, c.running + k / 2, p.running + k / 2
    c.owed, pool.free = true, nil
    core.write('ZREM', READY, members)
    core.write('HSET', JOB, records)
    core.write('ZADD', TAKEN, taken)
    return answer
  end

  -- The usual case: the first delivery of a job that was never handed back, has no key, and for which nobody waits.
  function core.done_plainly(id, delivery, result, ttl)
    local record, at = jobs[id], #BEGUN
    if delivery ~= '1' or type(record) ~= 'string' or find(record, BEGUN, 1, true) ~= 1 or byte(record, at + 72) ~= 45 then
      return false
    end
    local what = sub(record, at + 74)
    local kind = kinds[what] or core.kind(what)
    if kind.key ~= '' then
      return false
    end
    local f = kind.account or core.account(kind)
    local c, p = f.class, pool.procs[me] or core.process(me)
    c.running, f.running, p.running = c.running - 1, f.running - 1, p.running - 1
    local plain = pool.plain or core.plain()
    plain.taken[#plain.taken + 1] = me .. ':' .. id
    if ttl == '0' then
      plain.gone[#plain.gone + 1] = id
      jobs[id] = false
    else
      local records, results, kept = plain.records, plain.results, plain.kept
      local expires = core.due_after(ttl)
      record = 'done 1 - 1,0,0,' .. sub(record, at + 1, at + 34) .. pool.time .. ',' .. expires .. sub(record, at + 38)
      local n = #records
      records[n + 1], records[n + 2] = id, record
      n = #kept
      results[n + 1], results[n + 2] = id, result
      kept[n + 1], kept[n + 2] = '0', expires .. ':' .. id
      jobs[id] = record
    end
    if c.queued + c.running == 0 then
      core.rest(c)
    end
    return true
  end

  function core.done(id, delivery, result, ttl)
    if not core.done_plainly(id, delivery, result, ttl) then
      local j = core.mine(id, delivery)
      if not j then
        return STALE
      end
      core.succeed(j, result, ttl)
    end
    pool.succeeded = pool.succeeded + 1
    return DONE
  end

  -- When a job is due after some microseconds.
  function core.due_after(delay)
    return format('%016d', now + delay)
  end

  function core.tick()
    return DONE
  end

  -- ---------------------------------------------------------------- writing

  function core.ring_member(f, pass)
    return format('%d:%016d:', f.class.rank, pass) .. f.tenant
  end

  function core.flush_ring()
    local off, on = {}, {}
    for _, f in pairs(pool.flows) do
      local pass = f.queued > 0 and f.pass
      if pass ~= f.rung then
        if f.rung then
          off[#off + 1] = core.ring_member(f, f.rung)
        end
        if pass then
          on[#on + 1], on[#on + 2] = '0', core.ring_member(f, pass)
        end
        f.rung = pass
      end
    end
    core.write('ZREM', RING, off)
    core.write('ZADD', RING, on)
  end

  function core.flush_flows()
    core.flush_ring()
    local gone, set, off, on = {}, {}, {}, {}
    for key, f in pairs(pool.flows) do
      local c = f.class
      local owes = f.queued + f.running == 0 and f.pass > c.virtual and f.pass
      if owes ~= f.owes then
        if f.owes then
          off[#off + 1] = core.ring_member(f, f.owes)
        end
        if owes then
          on[#on + 1], on[#on + 2] = '0', core.ring_member(f, owes)
          c.owed = true
        end
        f.owes = owes
      end
      local raw = (owes or f.queued + f.running > 0) and format('%d %d %d', f.pass, f.queued, f.running)
      if raw ~= f.raw then
        if raw then
          set[#set + 1], set[#set + 2] = key, raw
        else
          gone[#gone + 1] = key
        end
        f.raw = raw
      end
    end
    core.write('HDEL', TAG, gone)
    core.write('ZREM', DEBT, off)
    core.write('HSET', TAG, set)
    core.write('ZADD', DEBT, on)
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

  -- What became of the classes.
  function core.flush_classes(words)
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
  end

  function core.flush_procs()
    for name, p in pairs(pool.procs) do
      local raw = p.running + p.hungry > 0 and p.running .. ' ' .. p.hungry
      if raw ~= p.raw then
        if raw then
          call('HSET', PROCS, name, raw)
        elseif p.raw then
          call('HDEL', PROCS, name)
        end
      end
    end
  end
end

-- ------------------------------------------------------------------ what else becomes of a job

local function apart()
  -- state delivery by failures,lost,backs,first,started,at,expires number enqueued watchers rank charge
  -- length-of-key key tenant
  --
  -- in one line. `by` is the process that runs it, or the kind of its death. `lost` counts deliveries to processes that
  -- died since. `first` is when the first attempt was delivered, `started` the latest. `at` is when a delayed one is
  -- due, and when another ended. What is said from `rank` on does not change, see `core.kind`. The history of most jobs
  -- is not looked at either, so it is taken apart only when it is asked for.

  function core.unfold(j)
    if j.history then
      j.failures, j.lost, j.backs, j.first, j.started, j.at, j.expires =
        match(j.history, '^(%d+),(%d+),(%d+),([^,]+),([^,]+),([^,]+),([^,]+)$')
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
    local state, delivery, by, history, number, enqueued, watchers, what =
      match(record, '^(%l+) (%d+) (%S+) (%S+) (%d+) (%d+) (%S+) (.*)$')
    local kind = pool.kinds[what] or core.kind(what)
    -- Made in one piece: a table that grows is copied again and again.
    return setmetatable({
      id = id, state = state, delivery = delivery, by = by, history = history, number = number, enqueued = enqueued,
      watchers = watchers, kind = kind, rank = kind.rank, charge = kind.charge, dedup = kind.key, tenant = kind.tenant,
      stored = true, changed = false, moved = false, was_key = false, was = false, body = false, res = false,
    }, folded)
  end

  function core.encode(j)
    local history = j.history
      or j.failures .. ',' .. j.lost .. ',' .. j.backs .. ',' .. j.first .. ',' .. j.started .. ',' .. j.at .. ','
        .. j.expires
    return j.state .. ' ' .. j.delivery .. ' ' .. j.by .. ' ' .. history .. ' ' .. j.number .. ' ' .. j.enqueued .. ' '
      .. j.watchers .. ' ' .. j.kind.what
  end

  function core.account_of(j)
    return j.kind.account or core.account(j.kind)
  end

  -- In which line a job stands, and as what.
  function core.place(j)
    local state = j.state
    if state == 'queued' then
      return READY, core.account_of(j).prefix .. j.number .. ':' .. j.id .. ':' .. j.charge
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

  function core.job(id)
    if pool.jobs[id] == nil then
      core.load({ id })
    end
    local j = pool.jobs[id]
    if type(j) == 'string' then
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

  -- Count a job in or out where it stands: 1 or -1.
  function core.count(j, sign)
    local c, state = core.class(j.rank), j.state
    pool.free = nil
    if state == 'delayed' then
      c.delayed = c.delayed + sign
    elseif state == 'queued' or state == 'running' then
      local f = core.account_of(j)
      if state == 'queued' and f.queued == 0 then
        core.wake_tenant(f)
      end
      c[state], f[state] = c[state] + sign, f[state] + sign
      if state == 'running' then
        local p = core.process(j.by)
        p.running = p.running + sign
      end
    end
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
    local c = core.class(j.rank)
    c.fresh = c.fresh + 1
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

  function core.put_later(id, record, delay, body)
    local j = core.decode(id, record)
    j.state, j.stored, j.body = 'new', false, body
    pool.jobs[id] = j
    core.line_up_later(j, delay)
  end

  -- Put what comes of a job that has run, also where the queue is full.
  function core.follow(id, how, body)
    return core.put(id, how, body, true)
  end

  -- A queued job that has a history is delivered to this process: as it is kept then, and what is told of it.
  function core.deliver(id, record)
    local j = core.decode(id, record)
    j.state, j.by, j.delivery = 'running', me, j.delivery + 1
    core.unfold(j)
    j.started, j.first = pool.time, j.first == '-' and pool.time or j.first
    local told = id .. ' ' .. j.delivery .. ' ' .. j.failures + 1 .. ' ' .. j.backs .. ' ' .. j.lost .. ' ' .. j.enqueued
      .. ' ' .. j.first .. ' ' .. j.tenant
    return core.encode(j), told
  end

  function core.rest_after(j)
    local c = core.class(j.rank)
    if c.queued + c.running == 0 then
      core.rest(c)
    end
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
    core.rest_after(j)
  end

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
    if process ~= '' and not find(',' .. j.watchers .. ',', ',' .. process .. ',', 1, true) then
      local watchers = j.watchers == '-' and process or j.watchers .. ',' .. process
      j.watchers = sub(watchers, -(17 * 32 - 1)) -- The newest 32.
      core.change(j)
    end
  end

  -- ---------------------------------------------------------------- writing

  function core.flush_changed()
    local changed = pool.changed
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

  -- ---------------------------------------------------------------- what time does

  function core.bury_it(j, kind, error)
    j.failures, j.at, j.expires, j.by, j.res = j.failures + 1, pool.time, core.due_after(dead_ttl), kind, error
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
        -- Who gets it once more does not run it, but buries it and tells whom it may concern; and may die of that, too.
        if j.lost > most_lost then
          core.move(j, 'dead')
          local error = 'Killed: the process that ran it died, ' .. j.lost .. ' times'
          core.bury_it(j, 'killed', '{"error": "' .. error .. '", "traceback": ""}')
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

  -- A process without a lease.
  function core.bury_process(name, p)
    core.sate(name)
    if p.running > 0 and pool.moves > 0 then
      core.strip(name, true)
    end
  end

  function core.wake_delayed(ids)
    core.load(ids)
    pool.moves = pool.moves - #ids
    for _, id in ipairs(ids) do
      local j = core.job(id)
      if j then
        core.line_up(j)
      end
    end
  end

  -- Those of one of the lines of what has ended.
  function core.expire(key, ids)
    core.write('ZREM', key, call('ZRANGE', key, 0, #ids - 1))
    core.write('HDEL', JOB, ids)
    core.write('HDEL', BODY, ids)
    core.write('HDEL', RES, ids)
  end

  -- ---------------------------------------------------------------- reports

  -- The job, if this process has that delivery of it.
  function core.mine(id, delivery)
    local j = core.job(id)
    if j and j.state == 'running' and j.by == me and tonumber(j.delivery) == tonumber(delivery) then
      return j
    end
    pool.stale = pool.stale + 1
  end

  function core.succeed(j, result, ttl)
    if ttl == '0' then
      core.forget(j)
    else
      core.move(j, 'done')
      j.failures, j.at, j.expires, j.by, j.res = j.failures + 1, pool.time, core.due_after(ttl), '-', result
      core.finish(j)
    end
  end

  function core.retry(id, delivery, delay, error)
    local j = core.mine(id, delivery)
    if not j then
      return STALE
    end
    pool.failed, pool.retried = pool.failed + 1, pool.retried + 1
    j.failures, j.res = j.failures + 1, error
    core.line_up_later(j, tonumber(delay))
    core.rest_after(j)
    return DONE
  end

  -- It was not run: its tenant is not charged.
  function core.refund(j)
    local f = core.account_of(j)
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
    core.rest_after(j)
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

  -- ---------------------------------------------------------------- who wants jobs

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
    core.process(me).hungry, pool.wanted = 1, true
    return DONE
  end

  -- Tell who wants them that jobs are ready: one process for each that is new.
  function core.wake()
    local hungry, stored = {}, call('HGETALL', HUNGRY)
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
        local left = min(c.fresh, c.queued)
        if left > 0 and core.serves(c, process.tenants, process.steal) then
          c.fresh = left - 1
          core.sate(process.name)
          core.tell(process.name, 'wake ' .. rank)
          break
        end
      end
    end
  end
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
      position = 1 + call('ZLEXCOUNT', READY, '[' .. core.account_of(j).prefix, '(' .. member)
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
    elseif max_queue_size > 0 and not core.room() then
      return FULL
    end
    if j.dedup ~= '' then
      if core.dedup(j.dedup) then
        j.dedup = '' -- Another has it now.
        j.kind = core.kind(j.rank .. ' ' .. j.charge .. ' 0 ' .. j.tenant)
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
        c.fresh = c.queued
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
    pool.asked = true
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

local makers, made = { usual, apart, rarely }, 0

setmetatable(core, {
  __index = function(_, name)
    repeat
      made = made + 1
      makers[made]()
    until rawget(core, name)
    return core[name]
  end,
})

-- Verbs and how many arguments they take.
local ARITY = {
  put = 3, -- id, how, body
  follow = 3, -- the same
  take = 4, -- class, how many, tenants, of whom to steal
  want = 3, -- classes, tenants, of whom to steal
  done = 4, -- id, delivery, result, time to live
  retry = 4, -- id, delivery, delay, error
  back = 4, -- id, delivery, delay, 1 if it is counted
  bury = 4, -- id, delivery, kind, error
  cancel = 1, -- id
  look = 2, -- id, watcher
  ls = 5, -- state, class or -, tenant or *, after, how many
  here = 1, -- after which id
  requeue = 1, -- id
  drop = 1, -- id
  purge = 3, -- state, class or -, tenant or *
  pause = 1, -- class or -
  resume = 1, -- class or -
  stats = 0,
  leave = 0,
  tick = 0,
}

-- Those of which many come in one call, so that the jobs they name are read at once.
local COMMON = { put = true, follow = true, done = true, retry = true, back = true, bury = true }

local ids = {}
local only_puts, asks_for_jobs = true, false

do
  local i, n, last = 7, 0, #ARGV
  while i <= last do
    local verb, count = ARGV[i], tonumber(ARGV[i + 1])
    local arity = ARITY[verb]
    i = i + 2
    if not arity or not count or i + count * arity - 1 > last then
      return redis.error_reply('ERR not an operation on jobs: ' .. sub(verb, 1, 60))
    end
    if COMMON[verb] then
      for k = 0, count - 1 do
        ids[n + k + 1] = ARGV[i + k * arity]
      end
      n = n + count
    end
    only_puts = only_puts and (verb == 'put' or verb == 'follow')
    asks_for_jobs = asks_for_jobs or verb == 'take' or verb == 'want'
    i = i + count * arity
  end
end

local queue = 'now=%d number=%d paused=%d enqueued=%d succeeded=%d failed=%d retried=%d handed_back=%d redelivered=%d '
  .. 'dead=%d stale=%d'

do
  local stored =
    call('HMGET', JST, 'queue', 'class0', 'class1', 'class2', 'class3', 'class4', 'class5', 'class6', 'class7')
  local was = stored[1] or format(queue, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
  for name, value in gmatch(was, '(%S+)=(%S+)') do
    pool[name] = tonumber(value)
  end
  for rank = 0, 7 do
    local raw = stored[rank + 2]
    if raw then
      local c = core.class(rank)
      local queued, delayed, running, paused, virtual =
        match(raw, '^queued=(%S+) delayed=(%S+) running=(%S+) paused=(%S+) virtual=(%S+)$')
      c.raw = raw
      c.queued, c.delayed, c.running = tonumber(queued), tonumber(delayed), tonumber(running)
      c.paused, c.virtual = tonumber(paused), tonumber(virtual)
    end
  end
  -- Clocks are set back and replicas' clocks differ: then time stands still until it has caught up.
  if ARGV[2] == '-' then
    local time = call('TIME')
    now = max(pool.now, time[1] * 1e6 + time[2])
  else
    now = max(pool.now, tonumber(ARGV[2]))
  end
  pool.time = format('%016d', now)
  if only_puts then
    call('HSET', JST, 'queue', was)
  else
    call('HDEL', JOB, '-')
  end
end

-- What stands in one of the lines ordered by time, and its time has come.
local function due(key, most)
  local found = call('ZRANGEBYLEX', key, '-', '(' .. pool.time .. ';', 'LIMIT', 0, most)
  for i, member in ipairs(found) do
    found[i] = sub(member, 18)
  end
  return found
end

for _, key in ipairs({ DEAD, KEPT }) do
  local ended = due(key, 100 + #ids)
  if ended[1] then
    core.expire(key, ended)
  end
end

if ids[1] then
  for i, record in ipairs(core.read(JOB, ids)) do
    pool.jobs[ids[i]] = record
  end
end

-- Look which processes live.
do
  local stored = call('HGETALL', PROCS)
  local names = {}
  for i = 1, #stored, 2 do
    local name, running, hungry = stored[i], match(stored[i + 1], '^(%d+) (%d+)$')
    pool.procs[name] = { raw = stored[i + 1], running = tonumber(running), hungry = tonumber(hungry) }
    pool.wanted = pool.wanted or hungry ~= '0'
    names[#names + 1] = name
  end
  if asks_for_jobs and not pool.procs[me] then
    names[#names + 1] = me
  end
  if names[1] then
    for i, ends in ipairs(call('ZMSCORE', LEASE, unpack(names))) do
      pool.alive[names[i]] = ends and tonumber(ends) > now
    end
    for name, p in pairs(pool.procs) do
      if not pool.alive[name] then
        core.bury_process(name, p)
      end
    end
  end
end

local delayed = 0
for _, c in pairs(pool.classes) do
  delayed = delayed + c.delayed
end
if delayed > 0 and pool.moves > 0 then
  local ready = due(DELAYED, pool.moves)
  if ready[1] then
    core.wake_delayed(ready)
  end
end

local answers, n = {}, 0
do
  local i, last = 7, #ARGV
  while i <= last do
    local verb, count = ARGV[i], ARGV[i + 1]
    local arity, operation = ARITY[verb], core[verb]
    i = i + 2
    for _ = 1, count do
      n = n + 1
      answers[n] = operation(unpack(ARGV, i, i + arity - 1))
      i = i + arity
    end
  end
end

if pool.plain or pool.changed[1] then
  core.flush_jobs()
end
for _, c in pairs(pool.wanted and pool.classes or {}) do
  if c.fresh > 0 then
    core.wake()
    break
  end
end
if next(pool.flows) then
  core.flush_flows()
end
if next(pool.new_dedup) then
  core.flush_dedup()
end
if next(pool.procs) then
  core.flush_procs()
end
for i = 1, pool.asked and n or 0 do
  if answers[i] == 'stats' then
    answers[i] = core.look_at_all()
  end
end

local words = {
  'queue',
  format(
    queue, now, pool.number, pool.paused, pool.enqueued, pool.succeeded, pool.failed, pool.retried, pool.handed_back,
    pool.redelivered, pool.dead, pool.stale
  ),
}
local ready = { 0, 0, 0, 0, 0, 0, 0, 0 }
delayed = 0
if next(pool.classes) then
  core.flush_classes(words)
  for rank, c in pairs(pool.classes) do
    ready[rank + 1] = pool.paused + c.paused == 0 and c.queued or 0
    delayed = delayed + c.delayed
  end
end
call('HSET', JST, unpack(words))

local first = delayed > 0 and call('ZRANGE', DELAYED, 0, 0)[1]
local queued, lobby = match(call('HGET', ST, 'pool') or '', ' queued=(%d+) lobby=(%d+)')

for name, lines in pairs(pool.messages) do
  call(ARGV[3], sub(ST, 1, -3) .. 'j:to:' .. name, table.concat(lines, '\n'))
end

return { now, ready, first and tonumber(sub(first, 1, 16)) or -1, queued and queued + lobby or 0, answers, pool.told }
