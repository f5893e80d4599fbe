-- Keeps leases alive. Takes expired ones again, whatever the limits are: their requests are still in flight.
--
-- KEYS[1]      the leases of all keys, and the epoch, as in acquire.lua
-- KEYS[n + 1]  the leases of a key; KEYS[1] again for a lease without keys
-- ARGV[1..3]   as in acquire.lua
-- ARGV[n + 3]  the id of a lease in KEYS[n + 1]; a lease with several keys is there once for each
--
-- Returns the outcome (1 done, -2 too late), the server's time, the epoch, and how many of the keys hold other data.
--
-- The first write is a command that a server without memory accepts, and it makes room for the others. A key with other
-- data keeps it, and does not affect the other leases.

local ttl = tonumber(ARGV[2])
local not_after = tonumber(ARGV[3])
local epoch = redis.call('ZRANGEBYSCORE', KEYS[1], '+inf', '+inf')[1]
if not_after > 0 and now > not_after then
  return { -2, now, epoch or '', 0 }
end

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local expires = now + ttl
local wrong = 0
for n = 2, #KEYS do
  local id = ARGV[n + 2]
  redis.call('ZADD', KEYS[1], expires, id)
  if KEYS[n] ~= KEYS[1] then
    local added = redis.pcall('ZADD', KEYS[n], expires, id)
    if type(added) == 'table' then
      wrong = wrong + 1
    elseif redis.call('PTTL', KEYS[n]) < ttl then
      redis.call('PEXPIRE', KEYS[n], ARGV[2])
    end
  end
end
if not epoch then
  epoch = ARGV[1]
  redis.call('ZADD', KEYS[1], '+inf', epoch)
end
if redis.call('PTTL', KEYS[1]) < ttl then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
shorten(KEYS[1], ttl)
return { 1, now, epoch, wrong }
