-- Counts the live leases.
--
-- KEYS[n]  leases by their expiry in the server's milliseconds; the epoch does not expire
-- ARGV[1]  the time to live of the leases, in milliseconds
--
-- Returns the number of leases in each key.

local live = '(' .. now
local counts = {}
for n, key in ipairs(KEYS) do
  counts[n] = redis.call('ZCOUNT', key, live, '(+inf')
  shorten(key, ARGV[1] + 0)
end
return counts
