-- heartbeat.lua: record that a sidecar is alive, and count the live sidecars.
--
-- KEYS[1]  sorted set: member = a sidecar's id, score = when its heartbeat expires, us since the epoch
-- KEYS[2]  the layout of the keys, restored if it was evicted or flushed
-- ARGV[1]  id of the sidecar, '' = only count
-- ARGV[2]  lifetime_us: how long this heartbeat is valid; 0 = the sidecar stops
-- ARGV[3]  the layout
-- Reply    integers: the number of sidecars whose heartbeat is valid, and now in us since the epoch
-- TTL      the lifetime, renewed with each heartbeat: a stopped fleet leaves no key behind
-- Cost     O(log n) for n sidecars, plus the heartbeats that have expired since the last call

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local id, lifetime = ARGV[1], tonumber(ARGV[2])

if id ~= '' and lifetime > 0 then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + lifetime), id)
  redis.call('SET', KEYS[2], ARGV[3], 'NX')
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(1, math.ceil(lifetime / 1000))))
elseif id ~= '' then
  redis.call('ZREM', KEYS[1], id)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
return {redis.call('ZCARD', KEYS[1]), now}
