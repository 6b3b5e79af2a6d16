-- hold: admit one holder into a slot, or say why not. Repeating it with the same hold id is harmless.
-- KEYS[1]  hf:{<resource_id>}:<slot_id>:mirror    hash  the slot's counts, see settle
-- KEYS[2]  hf:{<resource_id>}:<slot_id>:holds     zset  hold id, scored by its expiry, Unix ms
-- KEYS[3]  hf:{<resource_id>}:<slot_id>:parties   hash  hold id -> "<quantity>:<held since, Unix ms>"
-- KEYS[4]  hf:{<resource_id>}:<slot_id>:settled   zset  ids of booked holds, and "released:<id>", by when to forget them
-- KEYS[5]  hf:{<resource_id>}:active              zset  slot ids with holds, scored by their latest expiry
-- KEYS[6]  hf:{<resource_id>}:busy                zset  of a person or place: slots held or booked, by their end, Unix ms
-- KEYS[7]  hf:{<resource_id>}:doing               hash  the same slots -> "<start>:<told booked>:<held until>", see sync
-- ARGV[1]  hold id      ARGV[2]  quantity      ARGV[3]  ttl, ms      ARGV[4]  slot id
-- ARGV[5]  how long counts may say "full" unverified, ms      ARGV[6]  of a person or place: the slot's end, Unix ms
-- ARGV[7]  … and another of its slots that is given up for this one, or empty
-- Returns  {"held", now, expires, since, left} | {"again", now, expires, since, left} (this id held before)
--          {"full", now, left, held, booked, next_expiry or 0, capacity, unsure} | {"settled"} | {"mismatch"}
--          {"closed"} | {"past"} | {"missing"} | {"stale", other slot ids} (load the counts from Postgres, then ask again)
--          {"occupied", now, when the last hold in the way lapses, 0: booked, unsure} (by other slots of this person)
-- Safety   counts only live holds: lapsed ones are dropped first; never prolongs or doubles a hold of the same id; a
--          refusal writes nothing else. Events have neither KEYS[6] nor what follows from it
local mirror, holds, parties, settled, active = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local busy, doing = KEYS[6], KEYS[7]
local hold_id, quantity, ttl, slot_id, fresh = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local ends, leaving = ARGV[6], ARGV[7]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local counts = redis.call('HMGET', mirror, 'cap', 'booked', 'held', 'open', 'starts', 'forget', 'seen', 'unsure', 'twice', 'until')
if not counts[1] then return {'missing'} end
local capacity, booked, held = tonumber(counts[1]), tonumber(counts[2]), tonumber(counts[3])

local lapsed = redis.call('ZRANGEBYSCORE', holds, '-inf', now)
for _, id in ipairs(lapsed) do
  held = held - tonumber(string.match(redis.call('HGET', parties, id) or '0', '^%d+'))
  redis.call('ZREM', holds, id)
  redis.call('HDEL', parties, id)
end
if #lapsed > 0 then redis.call('HSET', mirror, 'held', held) end
if now < tonumber(counts[10] or 0) then held = math.max(0, held - tonumber(counts[9])) end -- see settle
local left = capacity - booked - held
local expires = redis.call('ZSCORE', holds, hold_id)
if expires then
  local mine, since = string.match(redis.call('HGET', parties, hold_id) or '0:0', '^(%d+):(%d+)$')
  if tonumber(mine) ~= quantity then return {'mismatch'} end
  return {'again', now, tonumber(expires), tonumber(since), left}
end
if redis.call('ZSCORE', settled, hold_id) then return {'settled'} end
if (counts[4] ~= '1' or quantity > left) and now - tonumber(counts[7]) > fresh then return {'stale'} end
if counts[4] ~= '1' then return {'closed'} end
if now >= tonumber(counts[5]) then return {'past'} end
if quantity > left then
  local first = tonumber(redis.call('ZRANGE', holds, 0, 0, 'WITHSCORES')[2] or 0)
  return {'full', now, left, held, booked, first, capacity, tonumber(counts[8] or 0)}
end

-- One thing at a time: other slots that are held or booked meanwhile are in the way. They do not overlap each other, so
-- those that end after this one begins are looked at in that order, until one begins when this one has ended.
local seen, lapse, doubtful = 0, 0, busy and {'stale'}
while busy do
  local other = redis.call('ZRANGEBYSCORE', busy, '(' .. counts[5], '+inf', 'LIMIT', seen, 1)[1]
  if not other then break end
  local from, told, till = string.match(redis.call('HGET', doing, other) or '0:0:0', '^(%d+):(%d+):(%d+)$')
  from, told, till = tonumber(from), tonumber(told), tonumber(till)
  if told == 0 and till <= now then -- nobody is there any more
    redis.call('ZREM', busy, other)
    redis.call('HDEL', doing, other)
  elseif from >= tonumber(ends) or seen == 20 then -- so many are enough to refuse
    break
  else
    seen = seen + 1
    if other ~= slot_id and other ~= leaving then -- several may share one slot: a class
      if told > 0 and now - told <= fresh then return {'occupied', now, 0, tonumber(counts[8] or 0)} end
      if till > now then lapse = math.max(lapse, till) else doubtful[#doubtful + 1] = other end
    end
  end
end
if lapse > 0 then return {'occupied', now, lapse, tonumber(counts[8] or 0)} end
if busy and #doubtful > 1 then return doubtful end

expires = now + ttl
redis.call('ZADD', holds, expires, hold_id)
redis.call('ZREM', settled, 'released:' .. hold_id) -- a keyed request may hold again what it released
redis.call('HSET', parties, hold_id, quantity .. ':' .. string.format('%.0f', now))
redis.call('HINCRBY', mirror, 'held', quantity)
redis.call('ZADD', active, 'GT', expires, slot_id)
redis.call('PEXPIREAT', active, counts[6]) -- nobody may ever read it: nor does it keep the slots of the past
redis.call('ZREMRANGEBYSCORE', active, '-inf', now)
if #redis.call('ZRANGE', holds, 0, 1) == 1 then -- the first hold makes the keys: let them be forgotten with the slot
  redis.call('PEXPIREAT', holds, counts[6])
  redis.call('PEXPIREAT', parties, counts[6])
end
if busy then
  local last = redis.call('ZRANGE', holds, -1, -1, 'WITHSCORES')[2]
  redis.call('ZADD', busy, ends, slot_id)
  redis.call('HSET', doing, slot_id, counts[5] .. ':' .. (booked > 0 and counts[7] or 0) .. ':' .. last)
  if redis.call('PTTL', busy) < counts[6] - now then
    redis.call('PEXPIREAT', busy, counts[6])
    redis.call('PEXPIREAT', doing, counts[6])
  end
end
return {'held', now, expires, now, left - quantity}
