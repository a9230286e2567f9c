-- KEYS: the topic's meta hash
-- ARGV: topic, shards
local topic = ARGV[1]
local shards = tonumber(redis.call('HGET', KEYS[1], 'shards') or '') or tonumber(ARGV[2])
for shard = 0, shards - 1 do
  local stream = topic
  if shards > 1 then stream = topic .. ':shard:' .. shard end
  if redis.call('EXISTS', stream) == 1 then
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
      redis.call('DEL', topic .. ':trunkline:owner:' .. shard .. ':' .. group[2], topic .. ':trunkline:members:' .. group[2])
    end
    redis.call('DEL', stream)
  end
end
redis.call('DEL', KEYS[1])
return 1
