-- Releases leases. A lease that has expired is skipped.
--
-- KEYS[1]      the leases of all keys
-- KEYS[n + 1]  the leases of a key; KEYS[1] again for a lease without keys
-- ARGV[n]      the id of a lease in KEYS[n + 1]; a lease with several keys is there once for each
--
-- Returns how many of the keys hold other data. Such a key keeps it, and does not affect the other leases.

redis.call('ZREM', KEYS[1], unpack(ARGV))
local wrong = 0
for n = 2, #KEYS do
  if KEYS[n] ~= KEYS[1] and type(redis.pcall('ZREM', KEYS[n], ARGV[n - 1])) == 'table' then
    wrong = wrong + 1
  end
end
return wrong
