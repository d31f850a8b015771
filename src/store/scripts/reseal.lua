-- Puts a record in the place of the same revision under another seal; its life stays what it is.
-- KEYS[1] record
-- ARGV[1] record
if redis.call('GETRANGE', KEYS[1], 0, 7) ~= string.sub(ARGV[1], 1, 8) then return end
redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL')
