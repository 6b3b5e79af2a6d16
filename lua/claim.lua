-- claim: count places as held by one client, who may hold so many of a venue's at once.
-- KEYS[1]  hf:{<client at a venue>}:claims   hash  hold id -> "<places>:<until, Unix ms>"
-- ARGV[1]  hold id      ARGV[2]  places; 0 gives the claim back      ARGV[3]  most at once      ARGV[4]  life, ms
-- Returns  {"claimed", 1 or 0} (0: it was there before) | {"dropped"}
--          {"limit", held, next, hold id…} (how many are held, when the next claim ends, 0 for none, and all in the way)
-- Safety   repeating it changes nothing but a claim's end, and neither that nor its places ever for the less: a claim
--          ends by itself with the hold it was made for, or is given back
local claims = KEYS[1]
local hold_id, places, most, life = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if places == 0 then
  redis.call('HDEL', claims, hold_id)
  return {'dropped'}
end
local ends, held, next, new = now + life, 0, 0, 1
local reply = {'limit', 0, 0}
local known = redis.call('HGETALL', claims)
for i = 1, #known, 2 do
  local theirs, till = string.match(known[i + 1], '^(%d+):(%d+)$')
  theirs, till = tonumber(theirs), tonumber(till)
  if till <= now then
    redis.call('HDEL', claims, known[i])
  elseif known[i] == hold_id then
    places, ends, new = math.max(places, theirs), math.max(ends, till), 0
  else
    held, next = held + theirs, next == 0 and till or math.min(next, till)
    reply[#reply + 1] = known[i]
  end
end
if held + places > most then
  reply[2], reply[3] = held, next
  return reply
end
redis.call('HSET', claims, hold_id, places .. ':' .. string.format('%.0f', ends))
if redis.call('PTTL', claims) < ends - now then redis.call('PEXPIREAT', claims, string.format('%.0f', ends)) end
return {'claimed', new}
