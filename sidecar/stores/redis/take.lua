-- take.lua: take tokens for many decisions in one call; for each decision from all its buckets or from none.
--
-- KEYS[1..n]  all different, one hash tag in Cluster (the partition's):
--             buckets, value '<tat>:<interval>' or '<tat>:<interval>:<debt>:<burst>' (layouts 1 and 2; the
--             number of fields tells them apart): TAT in us since the epoch, 16 digits (< 2^53), and the
--             interval in us at the time of the write; debt = TAT of all that is owed, 16 digits, only while
--             it is later than the TAT, with the burst of the last take; no key = a full bucket
--             generations, value = decimal text: the number of an integration's record
-- ARGV[1]     now_us: '0' = the server's TIME; > 0 only in tests
-- ARGV[2]     groups, one after another, as little-endian unsigned 32-bit words (struct 'I4'); a group:
--               asked          0..2^31-1 equal takes of this batch; 0 = peek
--               cost           tokens of one take, 1..1000000
--               generation_at  which of KEYS holds the owner's generation; 0 = do not check
--               generation     the expected generation, 1..2^32-1
--               buckets        number of buckets that follow, each three words:
--                 key_at       index in KEYS; groups may share a bucket
--                 interval_us  6000..60000000 us per token
--                 burst        1..1000000 tokens
-- Reply       integers: now_us, then for each group
--               admitted, and for each bucket its TAT before the takes; or, alone,
--               -1 - generation: the owner's generation differs, nothing was taken (-1 = no record)
-- Order       groups see what the groups before them in the call took
-- Writes      nothing for a peek; a refused take writes only a bucket that must be rebased (see draw);
--             all writes follow all decisions, one SET for each bucket that changed
-- TTL         max(1, ceil((later of TAT and debt - now) / 1000)) ms, set together with the value: the key
--             expires when the bucket is full and has no debt
-- Cost        O(buckets): one TIME, one MGET, one SET for each bucket that changed
-- Mirror      draw_all in sidecar/domain/bucket.py, same integers, same order

local call, floor, ceil, format, sub = redis.call, math.floor, math.ceil, string.format, string.sub

local now = tonumber(ARGV[1])
if now == 0 then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local stored = #KEYS > 0 and call('MGET', unpack(KEYS)) or {}
local words = #ARGV[2] / 4
local sent = {struct.unpack('<' .. string.rep('I4', words), ARGV[2])}

-- With a 64-bit C long, %d prints these integers and saves an eighth of the call's time; a 32-bit build of
-- Redis must print them as doubles.
local is_long = format('%d', 4503599627370496) == '4503599627370496'
local level_text, owing_text, ttl_text = '%016.0f:%.0f', '%016.0f:%.0f:%016.0f:%.0f', '%.0f'
if is_long then level_text, owing_text, ttl_text = '%016d:%d', '%016d:%d:%016d:%d', '%d' end

local BURST_MAX = 1000000
local tats, intervals = {}, {} -- levels by index of the key, read on first use; a TAT of 0 is a full bucket
local debts, bursts = {}, {} -- the debts of levels of layout 2
local owed = {} -- debts before the takes of the current group
local changed, changes = {}, 0 -- indexes of the keys to write, each once
local is_changed = {}
local reply, replied = {now}, 1

local function read(key_at, interval)
  local value = stored[key_at]
  local tat = value and tonumber(sub(value, 1, 16)) or 0
  tats[key_at] = tat
  if tat > 0 then
    local written = tonumber(sub(value, 18)) -- nil: it is of layout 2
    if not written then
      local debt, burst
      written, debt, burst = string.match(value, '^%d+:(%d+):(%d+):(%d+)$')
      written, debts[key_at], bursts[key_at] = tonumber(written), tonumber(debt), tonumber(burst)
    end
    intervals[key_at] = written or interval
  else
    intervals[key_at] = interval
  end
  return tat
end

-- The TAT before the takes, for a level written under another quota; see _start in the mirror.
local function rebase(key_at, tat, interval, burst)
  local debt, written = debts[key_at], intervals[key_at]
  local used = tat > now and tat - now or 0
  local owing = (debt or tat) - now
  owed[key_at] = nil
  if owing <= 0 then return now end
  if written ~= interval then
    used = math.min(ceil(used / written), BURST_MAX) * interval
    owing = math.min(ceil(owing / written), BURST_MAX) * interval
  else
    owing = math.min(owing, BURST_MAX * interval)
  end
  if debt and burst > bursts[key_at] then used = owing end
  used = math.min(used, burst * interval)
  if owing > used then owed[key_at] = now + owing end
  return now + used
end

local function store(key_at, tat, interval, burst, used)
  tats[key_at], intervals[key_at] = tat, interval
  local debt = owed[key_at]
  if debt then
    debt = math.min(debt + used, now + BURST_MAX * interval)
    if debt <= tat then debt = nil end
  end
  if debt or debts[key_at] then debts[key_at], bursts[key_at] = debt, burst end
  if not is_changed[key_at] then
    changes = changes + 1
    is_changed[key_at], changed[changes] = true, key_at
  end
end

local at = 1
while at <= words do
  local asked, cost, generation_at, generation = sent[at], sent[at + 1], sent[at + 2], sent[at + 3]
  local first, last = at + 5, at + 2 + 3 * sent[at + 4]
  at = last + 3
  local current = generation_at > 0 and (tonumber(stored[generation_at] or 0) or 0) or generation
  replied = replied + 1
  if current ~= generation then
    reply[replied] = -1 - current
  else
    local admitted_at, room, is_rebased = replied, nil, false
    reply[admitted_at] = 0
    for b = first, last, 3 do
      local key_at, interval, burst = sent[b], sent[b + 1], sent[b + 2]
      local tat = tats[key_at] or read(key_at, interval)
      local debt, start = debts[key_at], tat
      if debt or tat > now then
        if debt or intervals[key_at] ~= interval or tat - now > burst * interval then
          start = rebase(key_at, tat, interval, burst)
          if not is_rebased then
            is_rebased = (debt or tat) > now
              and (start ~= (tat > now and tat or now) or intervals[key_at] ~= interval
                or owed[key_at] ~= debt or (debt and bursts[key_at] ~= burst))
          end
        elseif owed[key_at] then
          owed[key_at] = nil
        end
      else
        start = now
      end
      local tokens = floor((now + burst * interval - start) / interval)
      if not room or tokens < room then room = tokens end
      replied = replied + 1
      reply[replied] = start
    end
    local admitted = floor(room / cost)
    if asked < admitted then admitted = asked end
    reply[admitted_at] = admitted
    if admitted > 0 or (asked > 0 and is_rebased) then
      for b = first, last, 3 do
        local used = admitted * cost * sent[b + 1]
        store(sent[b], reply[admitted_at + 1 + (b - first) / 3] + used, sent[b + 1], sent[b + 2], used)
      end
    end
  end
end

for i = 1, changes do
  local key_at = changed[i]
  local tat, debt = tats[key_at], debts[key_at]
  local text = debt and format(owing_text, tat, intervals[key_at], debt, bursts[key_at])
    or format(level_text, tat, intervals[key_at])
  local ttl_ms = ceil(((debt or tat) - now) / 1000)
  if ttl_ms < 1 then ttl_ms = 1 end
  call('SET', KEYS[key_at], text, 'PX', format(ttl_text, ttl_ms))
end

return reply
