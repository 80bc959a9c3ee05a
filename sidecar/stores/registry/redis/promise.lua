-- promise.lua: reserve an idempotency key for a request, unless it is reserved.
--
-- KEYS[1]     promises, hash: field -> '<fingerprint> <integration>'
-- KEYS[2]     promises-age, sorted set: the fields by time, us
-- ARGV[1]     field: the administrator and the key
-- ARGV[2]     the request
-- ARGV[3..5]  now_us; lifetime_us; maximum number of reservations
-- Reply       the request that the key is reserved for now

local call, format = redis.call, string.format
local field, now, lifetime, kept = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local at = call('ZSCORE', KEYS[2], field)
if at and tonumber(at) > now - lifetime then return call('HGET', KEYS[1], field) end

local function forget(fields)
  for _, old in ipairs(fields) do
    call('HDEL', KEYS[1], old)
    call('ZREM', KEYS[2], old)
  end
end

forget(call('ZRANGEBYSCORE', KEYS[2], '-inf', format('%.0f', now - lifetime), 'LIMIT', 0, 100))
local excess = call('ZCARD', KEYS[2]) + 1 - kept
if excess > 0 then forget(call('ZRANGE', KEYS[2], 0, format('%.0f', excess - 1))) end
call('HSET', KEYS[1], field, ARGV[2])
call('ZADD', KEYS[2], format('%.0f', now), field)
return ARGV[2]
