-- Makes all replicas read all overrides again.
--
-- KEYS[1..4]  as in limits_set.lua
-- ARGV[1]     the next epoch, which is also the id of this change
-- ARGV[2]     `accept` if an operator accepts the loss of overrides, so that replicas drop those that are not stored here;
--             else empty
-- ARGV[3]     who accepts it
-- ARGV[4]     from where
-- ARGV[5]     how many records the audit trail keeps
-- ARGV[6]     the last acceptance that the caller knows, or 0

if ARGV[2] == 'accept' then
  -- The value is a time, so that a value from a backup is smaller. Replicas accept only a greater one, so it also grows
  -- when this clock is behind the clock that wrote the last one.
  local now = redis.call('TIME')
  local stored = tonumber(redis.call('HGET', KEYS[3], 'accepted') or 0) or 0
  local accepted = math.max(now[1] * 1000000 + now[2], stored + 1, tonumber(ARGV[6]) + 1)
  redis.call('HSET', KEYS[3], 'accepted', string.format('%018.0f', accepted))
  local change = {
    id = ARGV[1],
    version = redis.call('HINCRBY', KEYS[3], 'version', 1),
    at = tonumber(now[1]),
    author = ARGV[3],
    origin = ARGV[4],
    loss_accepted = true,
  }
  redis.call('LPUSH', KEYS[4], cjson.encode(change))
  redis.call('LTRIM', KEYS[4], 0, tonumber(ARGV[5]) - 1)
end
redis.call('HSET', KEYS[3], 'epoch', ARGV[1])
return 1
