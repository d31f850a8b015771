-- Lets an alias name a session, unless it names another one.
-- KEYS[1] alias
-- ARGV[1] session key  ARGV[2] life, ms  ARGV[3] on a collision: "disable" (it names none for good) or "keep" (the first)
-- returns what the alias then names, "" for none
local named = redis.call('GET', KEYS[1])
local value = ARGV[1]
if named and named ~= value then
  value = ''
  if ARGV[3] == 'keep' then value = named end
end
redis.call('SET', KEYS[1], value, 'PX', ARGV[2])
return value
