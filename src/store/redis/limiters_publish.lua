-- Writes down which limiters there are.
--
-- KEYS[1]   a hash by what a limiter is known by: the second in which it was written last, a space, and
--           what it is
-- ARGV[1]   how many seconds it is kept that nobody writes any more
-- ARGV[2..] what each limiter is known by, and what it is
--
-- Everything is read before anything is written.

local kept = tonumber(ARGV[1])
local now = tonumber(redis.call('TIME')[1])
local gone = {}
local all = redis.call('HGETALL', KEYS[1])
for n = 1, #all, 2 do
  local at = string.match(all[n + 1], '^(%d+) ')
  if at and tonumber(at) + kept < now then
    gone[#gone + 1] = all[n]
  end
end

for _, field in ipairs(gone) do
  redis.call('HDEL', KEYS[1], field)
end
for n = 2, #ARGV - 1, 2 do
  redis.call('HSET', KEYS[1], ARGV[n], now .. ' ' .. ARGV[n + 1])
end
redis.call('EXPIRE', KEYS[1], kept)
return 1
