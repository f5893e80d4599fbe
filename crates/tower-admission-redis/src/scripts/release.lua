-- Gives leases back. Those that are gone already are none the worse.
--
-- KEYS[1]      the leases of all keys
-- KEYS[n + 1]  the leases of a key; of a lease that has no key, KEYS[1] again
-- ARGV[n]      the id of a lease that is among those of KEYS[n + 1]; of a lease with several keys,
--              once for each
--
-- Returns how many of the keys hold something else than leases. They keep it, and are no harm to the
-- other leases.

redis.call('ZREM', KEYS[1], unpack(ARGV))
local wrong = 0
for n = 2, #KEYS do
  if KEYS[n] ~= KEYS[1] and type(redis.pcall('ZREM', KEYS[n], ARGV[n - 1])) == 'table' then
    wrong = wrong + 1
  end
end
return wrong
