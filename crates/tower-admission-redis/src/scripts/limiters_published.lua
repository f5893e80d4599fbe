-- Reads the descriptions of limiters that have not expired.
--
-- KEYS[1]  as in limiters_publish.lua
-- ARGV[1]  after how many seconds a description expires
-- ARGV[2]  the same for fields that begin with `lost `
--
-- Returns the field and the text of each description.

local now = tonumber(redis.call('TIME')[1])
local all = redis.call('HGETALL', KEYS[1])
local found = {}
for n = 1, #all, 2 do
  local kept = string.sub(all[n], 1, 5) == 'lost ' and ARGV[2] or ARGV[1]
  local at, what = string.match(all[n + 1], '^(%d+) (.*)$')
  if at and tonumber(at) + tonumber(kept) >= now then
    found[#found + 1] = all[n]
    found[#found + 1] = what
  end
end
return found
