-- inspect: everything about one slot, for operators. Writes nothing.
-- KEYS[1]  hf:{<resource_id>}:<slot_id>:mirror    hash  the slot's counts, see settle
-- KEYS[2]  hf:{<resource_id>}:<slot_id>:holds     zset  hold id, scored by its expiry, Unix ms
-- KEYS[3]  hf:{<resource_id>}:<slot_id>:parties   hash  hold id -> "<quantity>:<held since, Unix ms>"
-- KEYS[4]  hf:{<resource_id>}:doing               hash  of a person or place: what its slots do, see sync
-- ARGV[1]  most holds to tell of      ARGV[2]  slot id
-- Returns  {"slot", now, {capacity, booked, held, open, version, seen} or {}, what its neighbours see of it (0: nothing,
--          1: held, 2: booked), id, quantity, since, expires, id, …} in order of expiry, live holds only
-- Safety   `held` is the stored count less what has lapsed since: compare it with the holds
local mirror, holds, parties, doing = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local most, slot_id = tonumber(ARGV[1]), ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local counts = {}
for i, value in ipairs(redis.call('HMGET', mirror, 'cap', 'booked', 'held', 'open', 'ver', 'seen')) do
  if value then counts[i] = tonumber(value) end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', holds, '-inf', now)) do
  if counts[3] then counts[3] = counts[3] - tonumber(string.match(redis.call('HGET', parties, id) or '0', '^%d+')) end
end
local told, till = string.match(redis.call('HGET', doing, slot_id) or '0:0:0', '^%d+:(%d+):(%d+)$')
local reply = {'slot', now, counts, tonumber(told) > 0 and 2 or tonumber(till) > now and 1 or 0}
local live = redis.call('ZRANGEBYSCORE', holds, '(' .. string.format('%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, most)
for i = 1, #live, 2 do
  local quantity, since = string.match(redis.call('HGET', parties, live[i]) or '0:0', '^(%d+):(%d+)$')
  for _, value in ipairs({live[i], tonumber(quantity), tonumber(since), tonumber(live[i + 1])}) do
    reply[#reply + 1] = value
  end
end
return reply
