-- Which limiters were written down of late.
--
-- KEYS[1]  as in limiters_publish.lua
-- ARGV[1]  for how many seconds they count
-- ARGV[2]  the same for what begins with `lost `
--
-- Returns what each is known by, and what it is.

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
