-- KEYS: the topic's meta hash
-- ARGV: topic, shards, group
local topic, group = ARGV[1], ARGV[3]
local shards = tonumber(redis.call('HGET', KEYS[1], 'shards') or '') or tonumber(ARGV[2])
for shard = 0, shards - 1 do
  local stream = topic
  if shards > 1 then stream = topic .. ':shard:' .. shard end
  if redis.call('EXISTS', stream) == 1 and redis.call('XGROUP', 'DESTROY', stream, group) == 1 then
    -- If it is made again, what was handed out before settles nothing of it.
    redis.call('HINCRBY', KEYS[1], 'round:' .. shard .. ':' .. group, 1)
  end
  redis.call('DEL', topic .. ':trunkline:owner:' .. shard .. ':' .. group)
end
redis.call('DEL', topic .. ':trunkline:members:' .. group)
return 1
