-- Lets an alias name a session; an alias that names another one names none from then on.
-- KEYS[1] alias
-- ARGV[1] session key  ARGV[2] life, ms
local named = redis.call('GET', KEYS[1])
local value = ARGV[1]
if named and named ~= value then value = '' end
redis.call('SET', KEYS[1], value, 'PX', ARGV[2])
