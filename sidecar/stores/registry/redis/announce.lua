-- announce.lua: record that a sidecar is alive and its revision; delete sidecars that are not alive.
--
-- KEYS[1]     sidecars, hash: sidecar -> revision
-- KEYS[2]     sidecars-age, sorted set: sidecars by time, us
-- ARGV[1..2]  the sidecar; its revision
-- ARGV[3]     now_us: '0' = the server's TIME; > 0 only in tests
-- ARGV[4..5]  lifetime_us; maximum number of sidecars
-- Reply       integer: 1 = recorded, 0 = the maximum is reached

local call, format = redis.call, string.format
local now, lifetime, kept = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if now == 0 then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

for _, silent in ipairs(call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. format('%.0f', now - lifetime))) do
  call('HDEL', KEYS[1], silent)
  call('ZREM', KEYS[2], silent)
end
if not call('ZSCORE', KEYS[2], ARGV[1]) and call('ZCARD', KEYS[2]) >= kept then return 0 end
call('HSET', KEYS[1], ARGV[1], ARGV[2])
call('ZADD', KEYS[2], format('%.0f', now), ARGV[1])
return 1
