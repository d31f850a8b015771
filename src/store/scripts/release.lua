-- Gives a lease up, if it is its owner's.
-- KEYS[1] lease  KEYS[2] intent
-- ARGV[1] owner  ARGV[2] "known" when the intent goes too
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return end
redis.call('DEL', KEYS[1])
if ARGV[2] == 'known' then redis.call('DEL', KEYS[2]) end
