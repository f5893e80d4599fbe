-- Keeps leases alive. Those that are gone are taken again, whatever the limits say: their holder
-- is at work.
--
-- KEYS[1]      the leases of all keys, and the epoch, as in acquire.lua
-- KEYS[n + 1]  the leases of a key; of a lease that has no key, KEYS[1] again
-- ARGV[1..3]   as in acquire.lua
-- ARGV[n + 3]  the id of a lease that is among those of KEYS[n + 1]; of a lease with several keys,
--              once for each
--
-- Returns what became of it (1 done, -2 too late), the server's time, the epoch, and how many of the
-- keys hold something else than leases.
--
-- The first write is one that a server without memory allows, and which lets the others pass. A key
-- that holds something else keeps it, and is no harm to the other leases.

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
bring_back(KEYS[1], ttl)
return { 1, now, epoch, wrong }
