-- Notes a customer's session, forgets those that are over, keeps the newest 1,000.
-- KEYS[1] index (sorted by end)
-- ARGV[1] session key  ARGV[2] its end, ms since 1970  ARGV[3] now, ms since 1970  ARGV[4] life, ms
-- returns the sessions that are no longer kept
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
local displaced = redis.call('ZRANGE', KEYS[1], 0, -1001)
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1001)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return displaced
