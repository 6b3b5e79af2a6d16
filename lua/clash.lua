-- clash: tell which slots of a person or place others of its slots are in the way of, for lists. Writes nothing.
-- KEYS[1]  hf:{<resource_id>}:busy                zset  slots held or booked, by their end, Unix ms
-- KEYS[2]  hf:{<resource_id>}:doing               hash  the same slots -> "<start>:<told booked>:<held until>", see sync
-- ARGV[1]  how long a booking is believed unverified, ms: lists have a newer word from Postgres
-- ARGV[3i-1]  slot id      ARGV[3i]  its start, Unix ms      ARGV[3i+1]  its end, Unix ms
-- Returns  {"clash", 0: nothing is in the way, 1: a hold, 2: a booking, …} in the order of ARGV
-- Safety   what lapsed and was not dropped yet is not counted; of several in the way the first to end is told
local busy, doing = KEYS[1], KEYS[2]
local fresh, slots = tonumber(ARGV[1]), ARGV
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local reply = {'clash'}
for i = 2, #slots, 3 do
  local slot_id, starts, ends = slots[i], slots[i + 1], tonumber(slots[i + 2])
  local seen, clash = 0, 0
  while clash == 0 do
    local other = redis.call('ZRANGEBYSCORE', busy, '(' .. starts, '+inf', 'LIMIT', seen, 1)[1]
    local from, told, till = string.match(other and redis.call('HGET', doing, other) or '0:0:0', '^(%d+):(%d+):(%d+)$')
    local is_held, is_booked = tonumber(till) > now, tonumber(told) > 0
    if not other or (is_held or is_booked) and tonumber(from) >= ends then break end
    seen = seen + 1
    if other ~= slot_id then
      clash = is_booked and now - tonumber(told) <= fresh and 2 or is_held and 1 or 0
    end
  end
  reply[#reply + 1] = clash
end
return reply
