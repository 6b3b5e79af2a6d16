-- allow: let one client's request pass, or tell how long it must wait: the generic cell rate algorithm.
-- KEYS[1]  hf:{<client>}:<limit>   string  when all it has asked for would be paid off at the steady rate, Unix µs
-- ARGV[1]  µs from one request to the next at that rate    ARGV[2]  how many may come at once
-- ARGV[3]  1 to ask for one, -1 to give one back
-- Returns  {"allowed"} | {"wait", µs}
-- Safety   a refusal changes nothing, so waiting as long as told is enough, and asking meanwhile does no harm; a client
--          that is silent until all is paid off is forgotten, and so is every client when Redis is emptied
local paid_off = KEYS[1]
local interval, most, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local due = math.max(tonumber(redis.call('GET', paid_off) or 0), now) + cost * interval
local beyond = due - now - most * interval
if cost > 0 and beyond > 0 then return {'wait', beyond} end
if due > now then
  redis.call('SET', paid_off, string.format('%.0f', due), 'PX', math.ceil((due - now) / 1000))
else
  redis.call('DEL', paid_off)
end
return {'allowed'}
