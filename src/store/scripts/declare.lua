-- Extends a lease and writes an intent, if the lease is still its owner's.
-- KEYS[1] lease  KEYS[2] intent
-- ARGV[1] owner  ARGV[2] life, ms  ARGV[3] intent  ARGV[4] intent's life, ms
-- returns 1 when it is, else 0
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
return 1
