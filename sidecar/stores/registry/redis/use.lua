-- use.lua: record uses of the credentials of one integration.
--
-- KEYS[1..4]  r:, k:, u:, s: of the integration (keys.py)
-- ARGV[1..3]  maximum number of addresses; how long an address is kept after the latest, us; TTL, ms
-- ARGV[3i+1..3i+3]  use i: credential id, time in us, address in hex
-- Reply       integer: number of credentials whose use was updated
-- Writes      nothing for an unknown integration or credential; never replaces a later time

local call, format = redis.call, string.format
if call('EXISTS', KEYS[1]) == 0 then return 0 end

local moved = 0
for i = 4, #ARGV, 3 do
  local credential_id, at, address = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if (call('HGET', KEYS[2], credential_id) or '0') ~= '0' then
    local known = call('HGET', KEYS[3], credential_id)
    if not known or tonumber(at) >= tonumber(string.match(known, '^%d+')) then
      call('HSET', KEYS[3], credential_id, at .. ' ' .. address)
      moved = moved + 1
    end
  end
  call('ZADD', KEYS[4], 'GT', at, address)
end
call('ZREMRANGEBYRANK', KEYS[4], 0, format('%.0f', -1 - tonumber(ARGV[1])))
local latest = call('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')[2]
call('ZREMRANGEBYSCORE', KEYS[4], '-inf', '(' .. format('%.0f', tonumber(latest) - tonumber(ARGV[2])))
call('PEXPIRE', KEYS[4], ARGV[3])
return moved
