-- post: what every connection of wrk sends. All requests are made before the clock starts, so that picking one is all.
-- Arguments, after "--": path, body with %s for the slot id, file of slot ids, connections of a thread, how long they
-- wait before their first request, ms, and a prefix of idempotency keys if there is one.
-- No response(): a callback for each answer would cost more than wrk itself. Answers are counted from the server's
-- metrics and from Postgres.
local threads = 0

function setup(thread)
  thread:set('number', threads)
  threads = threads + 1
end

function init(args)
  local path, body, slots, prefix = args[1], args[2], args[3], args[6] or ''
  waiting, lead_ms = tonumber(args[4]), tonumber(args[5])
  wrk.method, wrk.headers['Content-Type'] = 'POST', 'application/json'
  heads, tails, count = {}, {}, 0
  for slot in io.lines(slots) do
    if prefix ~= '' then wrk.headers['Idempotency-Key'] = '@KEY@' end
    local text = wrk.format(nil, path, nil, string.format(body, slot))
    local from, to = string.find(text, '@KEY@', 1, true)
    count = count + 1
    heads[count] = from and string.sub(text, 1, from - 1) or text
    tails[count] = from and string.sub(text, to + 1)
  end
  keys, sent = prefix .. number .. '-', 0
  math.randomseed(os.time() * 16 + number)
end

-- Connections are accepted one by one, in between the requests of those that are: all of them are there before the
-- first asks, or the time that the last ones waited would pass for that of their first requests.
function delay()
  if waiting == 0 then return 0 end
  waiting = waiting - 1
  return lead_ms
end

function request()
  local slot = count == 1 and 1 or math.random(count)
  if not tails[slot] then return heads[slot] end
  sent = sent + 1
  return heads[slot] .. keys .. sent .. tails[slot]
end
