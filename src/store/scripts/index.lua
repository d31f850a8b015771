-- Notes a customer's session and forgets those that are over.
-- KEYS[1] index (sorted by end)
-- ARGV[1] session key  ARGV[2] its end, ms since 1970  ARGV[3] now, ms since 1970  ARGV[4] life, ms
-- returns the newest of those beyond the newest 1,000, if any: it stands here until it has ended
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return redis.call('ZRANGE', KEYS[1], -1001, -1001)[1]
