-- room: the counts of several slots of one resource, for lists and alternatives. Writes nothing.
-- KEYS[3i-2]  hf:{<resource_id>}:<slot_id>:mirror    hash  the slot's counts, see settle
-- KEYS[3i-1]  hf:{<resource_id>}:<slot_id>:holds     zset  hold id, scored by its expiry, Unix ms
-- KEYS[3i]    hf:{<resource_id>}:<slot_id>:parties   hash  hold id -> "<quantity>:<held since, Unix ms>"
-- ARGV        none
-- Returns  {"room", {capacity, booked, held, open, version} or {} (slot not in the mirror), …} in the order of KEYS
-- Safety   lapsed holds that no script has dropped yet are not counted
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local reply = {'room'}
for i = 1, #KEYS, 3 do
  local mirror, holds, parties = KEYS[i], KEYS[i + 1], KEYS[i + 2]
  local counts = redis.call('HMGET', mirror, 'cap', 'booked', 'held', 'open', 'ver', 'twice', 'until')
  if counts[1] then
    local held = tonumber(counts[3])
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', holds, '-inf', now)) do
      held = held - tonumber(string.match(redis.call('HGET', parties, id) or '0', '^%d+'))
    end
    if now < tonumber(counts[7] or 0) then held = math.max(0, held - tonumber(counts[6])) end -- see settle
    reply[#reply + 1] = {tonumber(counts[1]), tonumber(counts[2]), held, tonumber(counts[4]), tonumber(counts[5])}
  else
    reply[#reply + 1] = {}
  end
end
return reply
