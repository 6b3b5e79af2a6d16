-- sync: bring the mirror of a slot to what Postgres says. Newer wins, so repeating and reordering it is harmless.
-- KEYS[1]  hf:{<resource_id>}:<slot_id>:mirror    hash  the slot's counts, see settle
-- KEYS[2]  hf:{<resource_id>}:<slot_id>:holds     zset  hold id, scored by its expiry, Unix ms
-- KEYS[3]  hf:{<resource_id>}:<slot_id>:parties   hash  hold id -> "<quantity>:<held since, Unix ms>"
-- KEYS[4]  hf:{<resource_id>}:busy                zset  of a person or place: slots held or booked, by their end, Unix ms
-- KEYS[5]  hf:{<resource_id>}:doing               hash  the same slots -> "<start>:<told booked>:<held until>", see sync
-- ARGV[1]  capacity     ARGV[2]  booked      ARGV[3]  version      ARGV[4]  open, 1 or 0
-- ARGV[5]  starts, Unix ms      ARGV[6]  when to forget the slot, Unix ms
-- ARGV[7]  1: repair. Take the counts whatever the mirror knows (a database restored from a backup counts lower), and
--          count the holds anew
-- ARGV[8]  of a person or place: slot id            ARGV[9]  its end, Unix ms; empty: not told, and whether it is one
-- Returns  {"synced"} | {"older"} (the mirror knows newer counts) | {"unknown"} (nothing asked for it, nor is all told)
-- Busy     has what its neighbours must not overlap: the slots of a person or place that are held or booked. `doing`
--          says of each when it starts, when Postgres last said that it is booked (0: it is not), and when the last of
--          its holds lapses (0: it has none). One that is neither stays until somebody comes across it
-- Safety   never touches a live hold
local mirror, holds, parties, busy, doing = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local capacity, booked, version, open, starts, forget = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]
local repair, slot_id, ends = ARGV[7] == '1', ARGV[8], tonumber(ARGV[9])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local counts = redis.call('HMGET', mirror, 'ver', 'booked', 'twice')
local known, more = tonumber(counts[1] or -1), tonumber(booked) - tonumber(counts[2] or 0)
if version < known and not repair then return {'older'} end
if known < 0 and busy and not ends then return {'unknown'} end
if known < 0 or repair then -- a mirror lost and made again finds the holds that outlived it
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', holds, '-inf', now)) do
    redis.call('ZREM', holds, id)
    redis.call('HDEL', parties, id)
  end
  local held = 0
  for _, party in ipairs(redis.call('HVALS', parties)) do held = held + tonumber(string.match(party, '^%d+')) end
  redis.call('HSET', mirror, 'held', held)
end
-- Bookings that no settle told of have left no record: their keyed retries must be looked up before a refusal.
if more > 0 or known < 0 and busy and version > 1 then -- of a person also those that ended: other slots are booked now
  redis.call('HSET', mirror, 'unsure', 1)
  -- Some of them may be on their way to settle, and still be counted as holds as well.
  if known >= 0 then redis.call('HSET', mirror, 'twice', tonumber(counts[3] or 0) + more, 'until', now + 2000) end
end
redis.call('HSET', mirror, 'cap', capacity, 'booked', booked, 'ver', version, 'open', open, 'starts', starts,
  'forget', forget, 'seen', now)
redis.call('PEXPIREAT', mirror, forget)

ends = ends or busy and tonumber(redis.call('HGET', mirror, 'ends'))
if busy and ends then
  local last = redis.call('ZRANGE', holds, -1, -1, 'WITHSCORES')[2] or '0'
  redis.call('HSET', mirror, 'ends', ends)
  if booked == '0' and tonumber(last) <= now then
    redis.call('ZREM', busy, slot_id)
    redis.call('HDEL', doing, slot_id)
  else
    local told = booked == '0' and '0' or string.format('%.0f', now)
    redis.call('ZADD', busy, ends, slot_id)
    redis.call('HSET', doing, slot_id, starts .. ':' .. told .. ':' .. last)
    if redis.call('PTTL', busy) < forget - now then
      redis.call('PEXPIREAT', busy, forget)
      redis.call('PEXPIREAT', doing, forget)
    end
  end
  for _, past in ipairs(redis.call('ZRANGEBYSCORE', busy, '-inf', now, 'LIMIT', 0, 100)) do
    redis.call('ZREM', busy, past)
    redis.call('HDEL', doing, past)
  end
end
return {'synced'}
