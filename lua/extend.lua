-- extend: move a live hold's expiry away from now, never nearer. Repeating it is harmless.
-- KEYS[1]  hf:{<resource_id>}:<slot_id>:holds     zset  hold id, scored by its expiry, Unix ms
-- KEYS[2]  hf:{<resource_id>}:<slot_id>:parties   hash  hold id -> "<quantity>:<held since, Unix ms>"
-- KEYS[3]  hf:{<resource_id>}:<slot_id>:settled   zset  ids of booked holds, and "released:<id>", by when to forget them
-- KEYS[4]  hf:{<resource_id>}:active              zset  slot ids with holds, scored by their latest expiry
-- KEYS[5]  hf:{<resource_id>}:doing               hash  of a person or place: what its slots do, see sync
-- ARGV[1]  hold id      ARGV[2]  ttl from now, ms      ARGV[3]  longest life since it was taken, ms; 0: any
-- ARGV[4]  slot id
-- Returns  {"extended", now, expires, since, quantity} | {"limit", now, expires, since, quantity} (as far as allowed)
--          {"settled", now} | {"released", now} | {"gone", now} (lapsed, or never known here)
-- Safety   a lapsed hold is gone even if no script has dropped it yet; an unlimited extension is for a booking that is
--          being committed, whose hold must not lapse under it
local holds, parties, settled, active, doing = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local hold_id, ttl, longest, slot_id = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local expires = tonumber(redis.call('ZSCORE', holds, hold_id) or 0)
if expires <= now then
  if redis.call('ZSCORE', settled, hold_id) then return {'settled', now} end
  if redis.call('ZSCORE', settled, 'released:' .. hold_id) then return {'released', now} end
  return {'gone', now}
end
local quantity, since = string.match(redis.call('HGET', parties, hold_id) or '0:0', '^(%d+):(%d+)$')
quantity, since = tonumber(quantity), tonumber(since)

local wanted = now + ttl
if longest > 0 and wanted > since + longest then
  wanted = since + longest
  if wanted <= expires then return {'limit', now, expires, since, quantity} end
end
if wanted > expires then
  expires = wanted
  redis.call('ZADD', holds, expires, hold_id)
  redis.call('ZADD', active, 'GT', expires, slot_id)
  local start, told, till = string.match(doing and redis.call('HGET', doing, slot_id) or '', '^(%d+:)(%d+:)(%d+)$')
  if till and expires > tonumber(till) then
    redis.call('HSET', doing, slot_id, start .. told .. string.format('%.0f', expires))
  end
end
return {'extended', now, expires, since, quantity}
