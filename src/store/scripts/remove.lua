-- Ends a session, leaves a tombstone that no save gets past, and tells the other replicas.
-- KEYS[1] record  KEYS[2] tombstone
-- ARGV[1] tombstone's life, ms  ARGV[2] channel  ARGV[3] message
-- A Redis that is full refuses a script's first write if it needs memory; one that gives some up comes first.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], '1', 'PX', ARGV[1])
redis.call('PUBLISH', ARGV[2], ARGV[3])
