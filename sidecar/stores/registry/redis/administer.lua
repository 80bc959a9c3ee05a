-- administer.lua: commit one change of administrators atomically.
--
-- KEYS[1..10]  audit, admins, admins-at, tokens, epoch, results, results-age of partition 0 (keys.py);
--              the audit indexes of the subject, the actor and the action
-- ARGV[1..6]   sequence and digest of the head that was planned on; channel; now_us; lifetime_us and maximum
--              number of stored results
-- ARGV[7..15]  administrator id; generation; sequence, digest and body of the audit entry; record; claims:
--              JSON list of token ids; idempotency field, '' = none; result to keep under it
-- Reply        {'ok'}, {'moved'}, {'answered', '1'}, {'claimed', '1', token id}, {'guard', '1', message}:
--              as in change.lua
-- Publishes    '0 <sequence> ' without an integration
-- Mirror       the triggers in ../sqlite/schema.py

local call, format = redis.call, string.format
local AUDIT, ADMINS, ADMINS_AT, TOKENS, EPOCH, RESULTS, RESULTS_AGE = unpack(KEYS, 1, 7)
local now_us, lifetime_us, results_max = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local id, generation, sequence, digest, body, record = unpack(ARGV, 7, 12)
local claims, field, result = cjson.decode(ARGV[13]), ARGV[14], ARGV[15]
local entry = cjson.decode(body)

local function number(value) return format('%.0f', value) end

local last = call('XREVRANGE', AUDIT, '+', '-', 'COUNT', 1)[1]
local head_sequence = last and tonumber(string.match(last[1], '^(%d+)-0$')) or 0
local head_digest = last and last[2][2] or string.rep('0', 64)
if head_sequence ~= tonumber(ARGV[1]) or head_digest ~= ARGV[2] then return {'moved'} end

if field ~= '' then
  local at_us = call('ZSCORE', RESULTS_AGE, field)
  if at_us and tonumber(at_us) > now_us - lifetime_us then return {'answered', '1'} end
end
for _, token_id in ipairs(claims) do
  if call('HEXISTS', TOKENS, token_id) == 1 then return {'claimed', '1', token_id} end
end

local stored = call('HGET', ADMINS, id)
local before = stored and cjson.decode(stored).generation or 0
if tonumber(generation) ~= before + 1 or cjson.decode(record).generation ~= tonumber(generation)
  or entry.generation ~= tonumber(generation) or entry.subject ~= 'administrator:' .. id then
  return {'guard', '1', 'a change of an administrator needs an audit entry and the next generation'}
end
if entry.sequence ~= head_sequence + 1 or tonumber(sequence) ~= entry.sequence
  or entry.previous ~= head_digest then
  return {'guard', '1', 'an audit entry must follow the latest one'}
end

-- A key of the wrong type fails here, before anything is written.
call('HLEN', ADMINS_AT); call('HLEN', TOKENS); call('GET', EPOCH); call('HLEN', RESULTS)
call('ZCARD', RESULTS_AGE)
for i = 8, 10 do call('ZCARD', KEYS[i]) end

local function forget(fields)
  for _, old in ipairs(fields) do
    call('HDEL', RESULTS, old)
    call('ZREM', RESULTS_AGE, old)
  end
end

call('XADD', AUDIT, sequence .. '-0', 'd', digest, 't', number(entry.at_us), 'b', body)
call('HSET', ADMINS, id, record)
call('HSET', ADMINS_AT, id, sequence)
for _, token_id in ipairs(claims) do call('HSET', TOKENS, token_id, id) end
call('SET', EPOCH, sequence)
for i = 8, 10 do call('ZADD', KEYS[i], sequence, sequence) end
if field ~= '' then
  forget(call('ZRANGEBYSCORE', RESULTS_AGE, '-inf', number(now_us - lifetime_us), 'LIMIT', 0, 100))
  local excess = call('ZCARD', RESULTS_AGE) + 1 - results_max
  if excess > 0 then forget(call('ZRANGE', RESULTS_AGE, 0, number(excess - 1))) end
  call('HSET', RESULTS, field, result)
  call('ZADD', RESULTS_AGE, number(now_us), field)
end
call('PUBLISH', ARGV[3], '0 ' .. sequence .. ' ')
return {'ok'}
