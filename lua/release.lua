-- release: give up a hold before it lapses. Repeating it is harmless.
-- KEYS[1]  hf:{<resource_id>}:<slot_id>:mirror    hash  the slot's counts, see settle
-- KEYS[2]  hf:{<resource_id>}:<slot_id>:holds     zset  hold id, scored by its expiry, Unix ms
-- KEYS[3]  hf:{<resource_id>}:<slot_id>:parties   hash  hold id -> "<quantity>:<held since, Unix ms>"
-- KEYS[4]  hf:{<resource_id>}:<slot_id>:settled   zset  ids of booked holds, and "released:<id>", by when to forget them
-- KEYS[5]  hf:{<resource_id>}:doing               hash  of a person or place: what its slots do, see sync
-- ARGV[1]  hold id      ARGV[2]  1: somebody has a token for it      ARGV[3]  of a person or place: slot id
-- Returns  {"released", quantity} | {"gone"}
-- Safety   gives back exactly what this hold took, and only while it is there: a second release invents nothing. A
--          token outlives its release; the mark keeps it from passing for one that Redis merely forgot
local mirror, holds, parties, settled, doing = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local hold_id, has_token, slot_id = ARGV[1], ARGV[2] == '1', ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local expires = redis.call('ZSCORE', holds, hold_id)
if not expires then return {'gone'} end
redis.call('ZREM', holds, hold_id)
if has_token then
  redis.call('ZREMRANGEBYSCORE', settled, '-inf', now) -- or holding and releasing for ever would fill the memory
  redis.call('ZADD', settled, expires, 'released:' .. hold_id)
  if redis.call('PTTL', settled) < 86400000 then redis.call('PEXPIRE', settled, 86400000) end
end
local quantity = tonumber(string.match(redis.call('HGET', parties, hold_id) or '0', '^%d+'))
redis.call('HDEL', parties, hold_id)
if redis.call('HEXISTS', mirror, 'cap') == 1 then redis.call('HINCRBY', mirror, 'held', -quantity) end
local known = string.match(doing and redis.call('HGET', doing, slot_id) or '', '^%d+:%d+:')
if known then redis.call('HSET', doing, slot_id, known .. (redis.call('ZRANGE', holds, -1, -1, 'WITHSCORES')[2] or 0)) end
return {'released', quantity}
