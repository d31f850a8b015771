-- Raises a customer's epoch; never lowers it.
-- KEYS[1] epoch
-- ARGV[1] epoch, ms since 1970  ARGV[2] life, ms
local known = tonumber(redis.call('GET', KEYS[1]) or '0')
local raised = math.max(known, tonumber(ARGV[1]))
redis.call('SET', KEYS[1], string.format('%.0f', raised), 'PX', ARGV[2])
