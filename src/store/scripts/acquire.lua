-- Takes a lease unless somebody else holds it. Asked twice by its owner, it is the owner's both times.
-- KEYS[1] lease  KEYS[2] intent
-- ARGV[1] owner  ARGV[2] life, ms
-- returns false when somebody else holds it, else the intent the last holder left, or ""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return false end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return redis.call('GET', KEYS[2]) or ''
