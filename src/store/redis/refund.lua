-- Gives back what a request took that turned out not to count.
--
-- KEYS, ARGV  as in take.lua; ARGV[2] is not looked at
--
-- Never fills a bucket beyond its burst: an arrival time in the past is a full bucket.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost = tonumber(ARGV[1])

local writes = {}
local at = 3
for n, key in ipairs(KEYS) do
  local stored = redis.call('GET', key)
  local count = tonumber(ARGV[at])
  if stored then
    local values = {}
    local longest = 0
    for interval, arrival in string.gmatch(stored, '(%S+) (%S+)') do
      interval, arrival = tonumber(interval), tonumber(arrival)
      if not interval or not arrival then
        return redis.error_reply('JUNK the value is not one of arrival times')
      end
      arrival = arrival - cost * interval
      longest = math.max(longest, arrival - now)
      values[#values + 1] = string.format('%.0f %.0f', interval, arrival)
    end
    writes[n] = { key = key, value = table.concat(values, ' '), left = longest }
  end
  at = at + 1 + 2 * count
end

for _, write in pairs(writes) do
  if write.left <= 0 then
    redis.call('DEL', write.key)
  else
    redis.call('SET', write.key, write.value, 'PX', string.format('%.0f', math.ceil(write.left / 1000) + 1))
  end
end
return 0
