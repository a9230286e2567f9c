-- KEYS: the topic's meta hash
-- ARGV: topic, shards, then for each group: its name, the id it has read up to
-- Returns how many shards there are, whether the topic was made, and the groups that were made.
local topic, shards = ARGV[1], tonumber(ARGV[2])
local known = tonumber(redis.call('HGET', KEYS[1], 'shards') or '') or shards
local streams = { topic }
if known > 1 then
  for shard = 0, known - 1 do streams[shard + 1] = topic .. ':shard:' .. shard end
end
local made = 0
for _, stream in ipairs(streams) do
  if redis.call('EXISTS', stream) == 0 then
    -- The only way to make a stream without a message.
    redis.call('XGROUP', 'CREATE', stream, 'trunkline', '0', 'MKSTREAM')
    redis.call('XGROUP', 'DESTROY', stream, 'trunkline')
    made = 1
  end
end
redis.call('HSETNX', KEYS[1], 'shards', known)
local groups = {}
for at = 3, #ARGV, 2 do
  local new = false
  for _, stream in ipairs(streams) do
    local reply = redis.pcall('XGROUP', 'CREATE', stream, ARGV[at], ARGV[at + 1])
    if type(reply) == 'table' and reply.err then
      if not string.find(reply.err, 'BUSYGROUP', 1, true) then return reply end
    else
      new = true
    end
  end
  if new then groups[#groups + 1] = ARGV[at] end
end
return { known, made, groups }
