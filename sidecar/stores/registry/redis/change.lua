-- change.lua: commit changes of integrations of one partition, all of them or none.
--
-- domain.changes.plan has applied the rules to the state at a head of the chain. If the chain or the
-- administrators have changed since, nothing is written and the caller plans again. The rules that no program
-- may break are checked here again, against the stored state.
--
-- KEYS[1..6]  audit, changes, ids, epoch, results, results-age (keys.py), then for each change seven:
--             r:, g:, k:, w: of the integration; the audit indexes of its subject, actor and action
-- ARGV[1..8]  partition; epoch: the administrators' change that was planned on; sequence and digest of the
--             head that was planned on; channel; now_us; lifetime_us and maximum number of stored results;
--             then for each change twelve:
--             integration id; status: active, suspended, deleted; generation; sequence; digest and body of
--             its audit entry; record; search text; claims: JSON list of credential ids; sealed: JSON
--             object, secret id -> sealed; idempotency field, '' = none; result to keep under it
-- Reply       {'ok'}                   committed
--             {'moved'}                the state has changed: plan again
--             {'answered', n}          change n: a result is stored under its idempotency key
--             {'claimed', n, id}       change n: the integration has issued this credential id before, or
--                                      is barred from issuing it
--             {'guard', n, message}    change n breaks a rule
-- Writes      after all checks; only the first write can fail (XADD requires the next id)
-- Publishes   '<partition> <sequence> <integration id>' for each change
-- Mirror      the triggers in ../sqlite/schema.py

local call, format = redis.call, string.format
local KEYS_FIXED, KEYS_EACH, ARGS_FIXED, ARGS_EACH = 6, 7, 8, 12
local AUDIT, CHANGES, IDS, EPOCH, RESULTS, RESULTS_AGE = unpack(KEYS, 1, KEYS_FIXED)
local now_us, lifetime_us, results_max = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local GENESIS = string.rep('0', 64)
local count = (#ARGV - ARGS_FIXED) / ARGS_EACH

local function number(value) return format('%.0f', value) end

local function read_change(n)
  local k, a = KEYS_FIXED + (n - 1) * KEYS_EACH, ARGS_FIXED + (n - 1) * ARGS_EACH
  local keys, args = {}, {}
  for i = 1, KEYS_EACH do keys[i] = KEYS[k + i] end
  for i = 1, ARGS_EACH do args[i] = ARGV[a + i] end
  return {
    r = keys[1], g = keys[2], k = keys[3], w = keys[4], indexes = {keys[5], keys[6], keys[7]},
    id = args[1], status = args[2], generation = tonumber(args[3]), sequence = tonumber(args[4]),
    digest = args[5], body = args[6], entry = cjson.decode(args[6]), stored = args[7],
    record = cjson.decode(args[7]), search = args[8], claims = cjson.decode(args[9]),
    sealed = cjson.decode(args[10]), field = args[11], result = args[12],
  }
end

local function head()
  local last = call('XREVRANGE', AUDIT, '+', '-', 'COUNT', 1)[1]
  if not last then return 0, GENESIS end
  return tonumber(string.match(last[1], '^(%d+)-0$')), last[2][2]
end

-- The state of each integration: as stored, then as earlier changes of this call leave it.
local known = {}
local function current(change)
  local state = known[change.id]
  if not state then
    local stored = call('HMGET', change.r, 'record', 'status')
    state = {issued = {}, generation = tonumber(call('GET', change.g) or 0)}
    if stored[1] then state.record, state.status = cjson.decode(stored[1]), stored[2] end
    known[change.id] = state
  end
  return state
end

local function issued_at(change, state, credential_id)
  local generation = state.issued[credential_id]
  if generation == nil then
    generation = tonumber(call('HGET', change.k, credential_id) or -1)
    state.issued[credential_id] = generation
  end
  return generation -- -1 = never, 0 = barred
end

local function suspenders(record)
  local names = {}
  for _, suspension in ipairs(record.suspensions) do names[suspension.by] = true end
  return names
end

-- The rules of suspending and reactivating. Returns the broken rule.
local function check_status(change, old)
  local new, actor = change.record, change.entry.actor
  if new.suspended_generation ~= old.record.suspended_generation
    and new.suspended_generation ~= change.generation then
    return 'a suspension puts its own generation on record, and that never goes back'
  end
  local before, after = suspenders(old.record), suspenders(new)
  if change.status == 'suspended' then
    for name in pairs(before) do
      if not after[name] then
        return 'whoever suspended an integration stays on record until it is reactivated'
      end
    end
    if old.status == 'active' and (not after[actor] or new.suspended_generation ~= change.generation) then
      return 'a suspension puts its suspender and its own generation on record'
    end
  elseif change.status == 'active' and old.status == 'suspended' then
    if before[actor] then return 'whoever suspended an integration cannot reactivate it' end
    if #new.credentials == 0 then
      return 'a reactivation needs a credential that was issued since the suspension'
    end
  end
end

local function check_credentials(change, state)
  local digests = {}
  for _, old in ipairs(state.record and state.record.credentials or {}) do digests[old.id] = old.digest end
  for _, new in ipairs(change.record.credentials) do
    if digests[new.id] and digests[new.id] ~= new.digest then return 'a credential keeps its digest' end
    if issued_at(change, state, new.id) ~= new.issued_generation then
      return 'a credential is claimed in the generation that issues it'
    end
    if change.status == 'active' and new.issued_generation < change.record.suspended_generation then
      return 'a credential from before the latest suspension never works again'
    end
  end
end

local function check_entry(change, sequence, digest)
  local entry = change.entry
  if change.sequence ~= sequence + 1 or entry.sequence ~= change.sequence or entry.previous ~= digest then
    return 'an audit entry must follow the latest one'
  end
  if entry.subject ~= 'integration:' .. change.id or entry.generation ~= change.generation then
    return 'a change needs an audit entry of its own'
  end
  local record = change.record
  if record.id ~= change.id or record.generation ~= change.generation
    or (change.status ~= 'deleted' and record.status ~= change.status) then
    return 'a record and what is stored beside it must be the same'
  end
end

local function check_record(change, state)
  if change.generation ~= state.generation + 1 then return 'a change needs the next generation' end
  if state.status == 'deleted' then return 'a deleted integration never changes' end
  if not state.record then
    if change.status ~= 'active' or change.record.suspended_generation ~= 0 then
      return 'an integration starts active'
    end
    return
  end
  return check_status(change, state)
end

local function claim(change, state)
  for _, credential_id in ipairs(change.claims) do
    if issued_at(change, state, credential_id) >= 0 then return credential_id end
    state.issued[credential_id] = change.generation
  end
end

-- All checks, in order; each change sees the effects of those before it.

local sequence, digest = head()
if tonumber(call('GET', EPOCH) or 0) > tonumber(ARGV[2])
  or sequence ~= tonumber(ARGV[3]) or digest ~= ARGV[4] then
  return {'moved'}
end

local changes = {}
for n = 1, count do
  local change = read_change(n)
  local state = current(change)
  if change.field ~= '' then
    local at_us = call('ZSCORE', RESULTS_AGE, change.field)
    if at_us and tonumber(at_us) > now_us - lifetime_us then return {'answered', number(n)} end
  end
  local taken = claim(change, state)
  if taken then return {'claimed', number(n), taken} end
  local broken = check_entry(change, sequence, digest) or check_record(change, state)
    or check_credentials(change, state)
  if broken then return {'guard', number(n), broken} end
  sequence, digest = change.sequence, change.digest
  state.generation, state.record, state.status = change.generation, change.record, change.status
  changes[n] = change
end

-- A key of the wrong type fails here, before anything is written.
for _, change in ipairs(changes) do
  call('HLEN', change.r); call('HLEN', change.k); call('HLEN', change.w)
  for _, index in ipairs(change.indexes) do call('ZCARD', index) end
end
call('ZCARD', CHANGES); call('ZCARD', IDS); call('HLEN', RESULTS); call('ZCARD', RESULTS_AGE)

local function forget(fields)
  for _, field in ipairs(fields) do
    call('HDEL', RESULTS, field)
    call('ZREM', RESULTS_AGE, field)
  end
end

local function keep_result(change)
  forget(call('ZRANGEBYSCORE', RESULTS_AGE, '-inf', number(now_us - lifetime_us), 'LIMIT', 0, 100))
  local excess = call('ZCARD', RESULTS_AGE) + 1 - results_max
  if excess > 0 then forget(call('ZRANGE', RESULTS_AGE, 0, number(excess - 1))) end
  call('HSET', RESULTS, change.field, change.result)
  call('ZADD', RESULTS_AGE, number(now_us), change.field)
end

local function write_secrets(change)
  local kept = {}
  for _, secret in ipairs(change.record.webhook_secrets) do kept[secret.id] = true end
  for _, id in ipairs(call('HKEYS', change.w)) do
    if not kept[id] then call('HDEL', change.w, id) end
  end
  for id, sealed in pairs(change.sealed) do call('HSET', change.w, id, sealed) end
end

local function write(change)
  local at = number(change.sequence)
  call('XADD', AUDIT, at .. '-0', 'd', change.digest, 't', number(change.entry.at_us), 'b', change.body)
  call('HSET', change.r, 'record', change.stored, 'status', change.status, 'sequence', at,
    'search', change.search)
  call('SET', change.g, number(change.generation))
  call('ZADD', CHANGES, at, change.id)
  if change.status == 'deleted' then call('ZREM', IDS, change.id) else call('ZADD', IDS, 0, change.id) end
  for _, credential_id in ipairs(change.claims) do
    call('HSET', change.k, credential_id, number(change.generation))
  end
  write_secrets(change)
  for _, index in ipairs(change.indexes) do call('ZADD', index, at, at) end
  if change.field ~= '' then keep_result(change) end
  call('PUBLISH', ARGV[5], ARGV[1] .. ' ' .. at .. ' ' .. change.id)
end

for _, change in ipairs(changes) do write(change) end
if tonumber(call('GET', EPOCH) or 0) < tonumber(ARGV[2]) then call('SET', EPOCH, ARGV[2]) end
return {'ok'}
