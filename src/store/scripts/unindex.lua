-- Forgets a customer's session.
-- KEYS[1] index (sorted by end)
-- ARGV[1] session key
-- No ZREM: the ACL user of an installation may do what index.lua needs, and no more.
redis.call('ZADD', KEYS[1], 'XX', '-inf', ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '-inf')
