-- Stores a session if nobody wrote it since it was read and it has not ended, and tells the other replicas.
-- KEYS[1] record  KEYS[2] tombstone
-- ARGV[1] revision read, 8 bytes ("" when none was)  ARGV[2] record  ARGV[3] life, ms  ARGV[4] channel  ARGV[5] message
-- returns "stored", "conflict" or "ended"; asked twice for one record, "stored" both times
if redis.call('EXISTS', KEYS[2]) == 1 then return 'ended' end
local stored = redis.call('GETRANGE', KEYS[1], 0, 7)
if stored ~= ARGV[1] then
  if redis.call('GET', KEYS[1]) == ARGV[2] then return 'stored' end
  if stored == '' then return 'ended' end
  return 'conflict'
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 'stored'
