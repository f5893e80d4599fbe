-- Has all replicas read all overrides anew.
--
-- KEYS[1..3]  as in limits_set.lua
-- ARGV[1]     the next epoch
-- ARGV[2]     `accept` when an operator accepts that overrides were lost, so that replicas drop those that are not here;
--             `lost` when a replica found that writes were lost, so that all of them see it; or nothing

if ARGV[2] == 'lost' then
  redis.call('HSET', KEYS[1], '#table', ARGV[1])
elseif ARGV[2] == 'accept' then
  -- By time, so that one of an older backup is older. Digits of one length compare as numbers do.
  local now = redis.call('TIME')
  redis.call('HSET', KEYS[3], 'accepted', string.format('%012d%06d', now[1], now[2]))
end
redis.call('HSET', KEYS[3], 'epoch', ARGV[1])
return 1
