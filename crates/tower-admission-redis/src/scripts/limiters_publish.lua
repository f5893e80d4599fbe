-- Writes descriptions of limiters.
--
-- KEYS[1]   a hash by the field of a description: the second of the last write, a space, and the description
-- ARGV[1]   after how many seconds a description expires that no process writes
-- ARGV[2]   the same for fields that begin with `lost `: a replica that ended keeps no lost overrides
-- ARGV[3..] the field and the text of each description; an empty text removes it
--
-- Reads everything before it writes anything.

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
