-- Counts the leases that are live.
--
-- KEYS[n]  leases, by when they expire in this server's milliseconds; an epoch does not expire
--
-- Returns how many there are in each.

local live = '(' .. now
local counts = {}
for n, key in ipairs(KEYS) do
  counts[n] = redis.call('ZCOUNT', key, live, '(+inf')
  bring_back(key, ARGV[1] + 0)
end
return counts
