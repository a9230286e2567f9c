-- KEYS: the members of the group, then owners of shards
-- ARGV: member or '' to stay in the group, then for each shard the owner it must be
if ARGV[1] ~= '' then redis.call('ZREM', KEYS[1], ARGV[1]) end
local freed = 0
for at = 2, #KEYS do
  if redis.call('GET', KEYS[at]) == ARGV[at] then freed = freed + redis.call('DEL', KEYS[at]) end
end
return freed
