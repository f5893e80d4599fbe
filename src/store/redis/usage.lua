-- Counts the leases that are live.
--
-- KEYS[n]  leases, by when they expire in this server's milliseconds; an epoch does not expire
--
-- Returns how many there are in each.

local time = redis.call('TIME')
local live = '(' .. string.format('%.0f', math.floor(time[1] * 1000 + time[2] / 1000))
local counts = {}
for n, key in ipairs(KEYS) do
  counts[n] = redis.call('ZCOUNT', key, live, '(+inf')
end
return counts
