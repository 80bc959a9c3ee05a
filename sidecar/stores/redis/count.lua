-- count.lua: take hits for many calls of the rate-limit service, each from several counters.
--
-- KEYS[1..n]  counters, all different, one hash tag in Cluster (that of the domain's partition):
--             a fixed window '<number of the unit>:<hits>', or a token bucket '<units>:<tokens>:<rest>:<limit>',
--             see Counter in the mirror; not there = unused
-- ARGV[1]     now_us: '0' = the server's TIME; > 0 only in tests
-- ARGV[2]     calls, one after another, as little-endian unsigned 32-bit words (struct 'I4'); a call:
--               takes        how many follow, each five words:
--                 key_at     which of KEYS it is; takes may share a counter
--                 unit_s     1..31536000 seconds
--                 limit      0..2^32-1 hits per unit
--                 hits       0..2^32-1; 0 = peek
--                 flags      1 = bucket, 2 = quota, 4 = shadow, 8 = counts hits that are refused
-- Reply       integers: now_us, then for each take whether it is over (1) or not (0), the hits or tokens in use
--             after the call, and the rest of a token in 1 / unit_us
-- Order       calls see what the calls before them took, and takes what the takes before them in the call took
-- Writes      nothing for a peek; a refused call writes only counters that count refused hits, and buckets whose
--             limit has changed; all writes follow all decisions, one SET for each counter that changed
-- TTL         set together with the value: until the window ends, or until the bucket is full
-- Numbers     every product and sum stays below 2^53, or only its size against a limit matters
-- Cost        O(takes): one TIME, one MGET, one SET for each counter that changed
-- Mirror      take_counters in sidecar/domain/rate_limits/counters.py, same integers, same order

local call, floor, ceil, format, match = redis.call, math.floor, math.ceil, string.format, string.match

local COUNT_MAX = 4503599627370496
local SECOND_US = 1000000

local now = tonumber(ARGV[1])
if now == 0 then
  local time = call('TIME')
  now = tonumber(time[1]) * SECOND_US + tonumber(time[2])
end

local stored = #KEYS > 0 and call('MGET', unpack(KEYS)) or {}
local words = #ARGV[2] / 4
local sent = {struct.unpack('<' .. string.rep('I4', words), ARGV[2])}

local held = {} -- counters by number of key, read on first use; false = unused
local changed, changes, is_changed = {}, 0, {}
local ttls_ms = {}
local reply, replied = {now}, 1

-- How many tokens have come back since the epoch: units, tokens, rest. Exact, because elapsed * limit is never
-- formed: it is split into seconds and microseconds, and the limit into multiples of the unit.
local function refills(limit, unit_s)
  local unit_us = unit_s * SECOND_US
  local units = floor(now / unit_us)
  local elapsed = now - units * unit_us
  local seconds = floor(elapsed / SECOND_US)
  local by_us = (elapsed - seconds * SECOND_US) * limit
  local tokens = floor(by_us / SECOND_US)
  local whole = floor(limit / unit_s)
  local rest = seconds * (limit - whole * unit_s) + tokens
  local more = floor(rest / unit_s)
  return units, seconds * whole + more, (rest - more * unit_s) * SECOND_US + by_us - tokens * SECOND_US
end

local function read(key_at)
  local counter = held[key_at]
  if counter == nil then
    local a, b, c, d = match(stored[key_at] or '', '^(%d+):(%d+):?(%d*):?(%d*)$')
    counter = a and {tonumber(a), tonumber(b), tonumber(c), tonumber(d)} or false
    held[key_at] = counter
  end
  return counter
end

-- What of a counter is in use, and whether it is a bucket in terms of another limit.
local function in_use(counter, is_bucket, unit_s, limit)
  if not counter or (is_bucket and not counter[4]) then return 0, 0, false end
  if not is_bucket then
    return counter[1] == floor(now / (unit_s * SECOND_US)) and counter[2] or 0, 0, false
  end
  local units, tokens, rest = refills(counter[4], unit_s)
  local used
  used, rest = (counter[1] - units) * counter[4] + counter[2] - tokens, counter[3] - rest
  if rest < 0 then used, rest = used - 1, rest + unit_s * SECOND_US end
  if used < 0 then used, rest = 0, 0 end
  if used >= counter[4] then used, rest = counter[4], 0 end
  if counter[4] == limit then return used, rest, false end
  if rest > 0 then used = used + 1 end
  return math.min(used, limit), 0, used > 0 and limit > 0
end

local function counter_of(is_bucket, unit_s, limit, used, rest)
  local unit_us = unit_s * SECOND_US
  if not is_bucket then return {floor(now / unit_us), used} end
  local units, tokens, more = refills(limit, unit_s)
  tokens, rest = tokens + used, rest + more
  if rest >= unit_us then tokens, rest = tokens + 1, rest - unit_us end
  more = floor(tokens / limit)
  return {units + more, tokens - more * limit, rest, limit}
end

local function keep(key_at, counter, unit_s, used)
  held[key_at] = counter
  if counter[4] then
    ttls_ms[key_at] = ceil((used + 1) / counter[4] * unit_s * 1000) + 1
  else
    ttls_ms[key_at] = math.max(1, ceil(((counter[1] + 1) * unit_s * SECOND_US - now) / 1000))
  end
  if not is_changed[key_at] then
    changes = changes + 1
    is_changed[key_at], changed[changes] = true, key_at
  end
end

local at = 1
while at <= words do
  local first, last = at + 1, at + 5 * sent[at]
  at = last + 1
  local began = replied
  local before, tried, takers, order = {}, {}, {}, {}
  local rebased, quotas, quotas_over, is_refused = {}, 0, 0, false

  for t = first, last, 5 do
    local key_at, unit_s, limit, hits, flags = sent[t], sent[t + 1], sent[t + 2], sent[t + 3], sent[t + 4]
    local is_bucket, is_quota = flags % 2 >= 1, flags % 4 >= 2
    local is_shadow, counts_refused = flags % 8 >= 4, flags >= 8
    local used, rest
    if tried[key_at] then
      used, rest = tried[key_at][1], tried[key_at][2]
    else
      local is_rebased
      used, rest, is_rebased = in_use(read(key_at), is_bucket, unit_s, limit)
      if is_rebased and hits > 0 then
        rebased[#rebased + 1] = {key_at, counter_of(true, unit_s, limit, used, rest), unit_s, used}
      end
    end
    if not before[key_at] then before[key_at] = {used, rest} end
    local over
    if is_bucket then
      over = hits > 0 and used + hits + (rest > 0 and 1 or 0) > limit
    else
      over = used + hits > limit
    end
    if hits > 0 and (counts_refused or not over) then
      used = math.min(used + hits, COUNT_MAX)
      if not tried[key_at] then order[#order + 1] = key_at end
      tried[key_at], takers[key_at] = {used, rest}, t
    end
    local is_enforced = over and not is_shadow
    if is_quota then
      quotas = quotas + 1
      if is_enforced then quotas_over = quotas_over + 1 end
    elseif is_enforced then
      is_refused = true
    end
    reply[replied + 1], reply[replied + 2], reply[replied + 3] = over and 1 or 0, used, rest
    replied = replied + 3
  end
  is_refused = is_refused or (quotas > 0 and quotas == quotas_over)

  if is_refused then
    replied = began
    for t = first, last, 5 do
      if sent[t + 4] < 8 then
        reply[replied + 2], reply[replied + 3] = before[sent[t]][1], before[sent[t]][2]
      end
      replied = replied + 3
    end
  end
  for _, kept in ipairs(rebased) do keep(kept[1], kept[2], kept[3], kept[4]) end
  for _, key_at in ipairs(order) do
    local t = takers[key_at]
    if sent[t + 4] >= 8 or not is_refused then
      local used, rest = tried[key_at][1], tried[key_at][2]
      keep(key_at, counter_of(sent[t + 4] % 2 >= 1, sent[t + 1], sent[t + 2], used, rest), sent[t + 1], used)
    end
  end
end

for i = 1, changes do
  local key_at = changed[i]
  local counter = held[key_at]
  local text
  if counter[4] then
    text = format('%.0f:%.0f:%.0f:%.0f', counter[1], counter[2], counter[3], counter[4])
  else
    text = format('%.0f:%.0f', counter[1], counter[2])
  end
  call('SET', KEYS[key_at], text, 'PX', format('%.0f', ttls_ms[key_at]))
end

return reply
