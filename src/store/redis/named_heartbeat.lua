-- Lets a lease that is live live anew. One that is gone stays gone.
--
-- KEYS[1..3]  as in named_acquire.lua
-- ARGV[1]     how long the lease lives from now on, in milliseconds
-- ARGV[2]     the lease
--
-- Returns 1, or 0 when it is gone.
--
-- Everything is read before anything is written. The first write is one that a server without memory
-- allows, and which lets the others pass.

local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
local held = redis.call('ZSCORE', KEYS[1], ARGV[2])
if not (held and tonumber(held) > now and redis.call('ZSCORE', KEYS[2], ARGV[2])) then
  return 0
end

local ttl = tonumber(ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[1])
for n = 1, 2 do
  redis.call('ZADD', KEYS[n], 'XX', string.format('%.0f', now + ttl), ARGV[2])
  if redis.call('PTTL', KEYS[n]) < ttl then
    redis.call('PEXPIRE', KEYS[n], ARGV[1])
  end
end
return 1
