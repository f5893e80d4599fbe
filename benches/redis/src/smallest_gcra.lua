-- The smallest GCRA that is possible, which others are measured by: one bucket of one key, and no checks.
--
-- KEYS[1]  when the bucket is full again, in whole microseconds; missing if it is full
-- ARGV[1]  what the request costs, in microseconds
-- ARGV[2]  what a full bucket holds, in microseconds
--
-- Returns what is left in the bucket. If that is negative, the request is rejected and takes nothing.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full_at = math.max(redis.call('GET', KEYS[1]) or 0, now) + ARGV[1]
local left = ARGV[2] - (full_at - now)
if left >= 0 then
  redis.call('SET', KEYS[1], full_at, 'PX', math.ceil((full_at - now) / 1000))
end
return left
