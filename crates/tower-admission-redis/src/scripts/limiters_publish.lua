-- Writes down which limiters there are.
--
-- KEYS[1]   a hash by what a limiter is known by: the second in which it was written last, a space, and
--           what it is
-- ARGV[1]   how many seconds it is kept that nobody writes any more
-- ARGV[2]   the same for what begins with `lost `, which a replica that is gone does not keep any more
-- ARGV[3..] what each limiter is known by, and what it is; nothing to remove it
--
-- Everything is read before anything is written.

local now = tonumber(redis.call('TIME')[1])
local gone = {}
local all = redis.call('HGETALL', KEYS[1])
for n = 1, #all, 2 do
  local kept = string.sub(all[n], 1, 5) == 'lost ' and ARGV[2] or ARGV[1]
  local at = string.match(all[n + 1], '^(%d+) ')
  if at and tonumber(at) + tonumber(kept) < now then
    gone[#gone + 1] = all[n]
  end
end

for _, field in ipairs(gone) do
  redis.call('HDEL', KEYS[1], field)
end
for n = 3, #ARGV - 1, 2 do
  if ARGV[n + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[n])
  else
    redis.call('HSET', KEYS[1], ARGV[n], now .. ' ' .. ARGV[n + 1])
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
