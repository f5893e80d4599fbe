-- Keeps leases alive. Those that are gone are taken again, whatever the limits say: their holder
-- is at work.
--
-- KEYS[1], KEYS[2], ARGV[1..2]  as in acquire.lua, but that ARGV[1] is a word for the epoch
-- KEYS[n + 2]  the leases of the n-th lease's key, or KEYS[1] again if that has no limit
-- ARGV[n + 2]  the n-th lease's id
--
-- Returns how many were gone, the server's time and the epoch.
--
-- The first write is one that a server without memory allows, and which lets the others pass.

local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
local function text(number)
  return string.format('%.0f', number)
end
local ttl = tonumber(ARGV[2])
local epoch = redis.call('GET', KEYS[2])

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(now))
local gone = 0
for n = 3, #KEYS do
  local id = ARGV[n]
  for _, key in ipairs({ KEYS[1], KEYS[n] }) do
    if key == KEYS[1] and not redis.call('ZSCORE', key, id) then
      gone = gone + 1
    end
    redis.call('ZADD', key, text(now + ttl), id)
    if redis.call('PTTL', key) < ttl then
      redis.call('PEXPIRE', key, ARGV[2])
    end
    if KEYS[n] == KEYS[1] then
      break
    end
  end
end
if not epoch then
  epoch = ARGV[1]
  redis.call('SET', KEYS[2], epoch)
end
return { gone, now, epoch }
