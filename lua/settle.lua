-- settle: turn a hold into a booking in the mirror: end the hold and apply the counts of the commit, in one step.
-- KEYS[1]  hf:{<resource_id>}:<slot_id>:mirror    hash  the slot's counts, see settle
-- KEYS[2]  hf:{<resource_id>}:<slot_id>:holds     zset  hold id, scored by its expiry, Unix ms
-- KEYS[3]  hf:{<resource_id>}:<slot_id>:parties   hash  hold id -> "<quantity>:<held since, Unix ms>"
-- KEYS[4]  hf:{<resource_id>}:<slot_id>:settled   zset  ids of booked holds, and "released:<id>", by when to forget them
-- KEYS[5]  hf:{<resource_id>}:busy                zset  of a person or place: slots held or booked, by their end, Unix ms
-- KEYS[6]  hf:{<resource_id>}:doing               hash  the same slots -> "<start>:<told booked>:<held until>", see sync
-- ARGV[1]  hold id      ARGV[2]  how long to remember that it became a booking, ms; 0: not at all
-- ARGV[3]  capacity     ARGV[4]  booked      ARGV[5]  version      ARGV[6]  open, 1 or 0
-- ARGV[7]  starts, Unix ms           ARGV[8]  when to forget the slot, Unix ms
-- ARGV[9]  of a person or place: slot id            ARGV[10]  its end, Unix ms; empty: the mirror knows
-- Returns  {"settled"} | {"older"} (the mirror knew these or newer counts already; the hold is ended all the same)
-- The mirror: cap booked ver open starts, as Postgres committed them at that version; seen, when that was told; forget,
--          when the keys end; held, the sum of the holds; unsure and ends, see sync; twice and until, see below
-- Safety   counts are absolute and versioned: late, repeated and reordered calls converge on the newest. The record is
--          left in the same step, so that a retry of the booking that took the last place is never told "full"
local mirror, holds, parties, settled, busy, doing = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local hold_id, remember, slot_id, ends = ARGV[1], tonumber(ARGV[2]), ARGV[9], tonumber(ARGV[10])
local capacity, booked, version, open, starts, forget = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local counts = redis.call('HMGET', mirror, 'ver', 'booked', 'twice')
local known, twice, mine = tonumber(counts[1] or -1), tonumber(counts[3] or 0), 0
if redis.call('ZREM', holds, hold_id) == 1 then
  mine = tonumber(string.match(redis.call('HGET', parties, hold_id) or '0', '^%d+'))
  redis.call('HDEL', parties, hold_id)
  if known >= 0 then redis.call('HINCRBY', mirror, 'held', -mine) end
end
if remember > 0 then
  redis.call('ZREMRANGEBYSCORE', settled, '-inf', now)
  redis.call('ZADD', settled, now + remember, hold_id)
  redis.call('PEXPIRE', settled, remember)
end
if known < 0 then return {'older'} end -- an unknown slot is loaded whole by sync, which counts its holds
ends = ends or busy and tonumber(redis.call('HGET', mirror, 'ends'))
if busy and ends then -- its neighbours see at once that it is booked now, not held
  local is_booked, told = counts[2], redis.call('HGET', mirror, 'seen')
  if version > known then is_booked, told = booked, string.format('%.0f', now) end
  local last = redis.call('ZRANGE', holds, -1, -1, 'WITHSCORES')[2] or 0
  redis.call('ZADD', busy, ends, slot_id)
  redis.call('HSET', doing, slot_id, starts .. ':' .. (is_booked ~= '0' and told or 0) .. ':' .. last)
  if redis.call('PTTL', busy) < forget - now then
    redis.call('PEXPIREAT', busy, forget)
    redis.call('PEXPIREAT', doing, forget)
  end
end
if version <= known then
  redis.call('HSET', mirror, 'twice', math.max(0, twice - mine))
  return {'older'}
end

-- The count tells of more than this commit when others' settles are still on their way: their places are in `booked`
-- and, as holds, in `held`. Counted twice they would refuse people for whom there is room. They arrive within moments;
-- a process that died cannot make it wrong for longer, and Postgres turns away whoever was let through.
twice = twice + math.max(0, tonumber(booked) - tonumber(counts[2]) - mine)
redis.call('HSET', mirror, 'cap', capacity, 'booked', booked, 'ver', version, 'open', open, 'starts', starts,
  'forget', forget, 'seen', now, 'twice', twice, 'until', now + 2000)
redis.call('PEXPIREAT', mirror, forget)
return {'settled'}
