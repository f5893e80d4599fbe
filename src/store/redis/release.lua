-- Gives leases back. Those that are gone already are none the worse.
--
-- KEYS[1]      the leases of all keys
-- KEYS[n + 1]  the leases of the n-th lease's key, or KEYS[1] again if that has no limit
-- ARGV[n]      the n-th lease's id
--
-- Returns how many were there.

local there = 0
for n = 2, #KEYS do
  local id = ARGV[n - 1]
  there = there + redis.call('ZREM', KEYS[1], id)
  if KEYS[n] ~= KEYS[1] then
    redis.call('ZREM', KEYS[n], id)
  end
end
return there
