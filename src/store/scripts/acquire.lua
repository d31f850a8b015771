-- Takes a lease unless somebody holds it.
-- KEYS[1] lease  KEYS[2] intent
-- ARGV[1] owner  ARGV[2] life, ms
-- returns false when somebody holds it, else the intent the last holder left, or ""
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return false end
return redis.call('GET', KEYS[2]) or ''
