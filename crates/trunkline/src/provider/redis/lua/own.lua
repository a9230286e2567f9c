-- KEYS: the members of the group, the topic's meta hash, then the owner of each shard
-- ARGV: member, lease in ms, group
-- Returns how many shards are this member's share, then for each shard the epoch under which it owns it, or 0.
local me, lease, group = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- First a write that Redis allows at `maxmemory`: after it the others are allowed too, and no shard is lost for want of memory.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + lease, me)
redis.call('PEXPIRE', KEYS[1], lease * 2)
local members = redis.call('ZRANGE', KEYS[1], 0, -1)
table.sort(members)
local shards = #KEYS - 2
local share = math.floor(shards / #members)
for at, member in ipairs(members) do
  if member == me and at <= shards % #members then share = share + 1 end
end
local out, mine, free = { share }, 0, {}
for shard = 1, shards do
  local owner = redis.call('GET', KEYS[shard + 2])
  local epoch = owner and string.match(owner, '^(%d+):') or nil
  if epoch and string.sub(owner, #epoch + 2) == me then
    redis.call('PEXPIRE', KEYS[shard + 2], lease)
    mine = mine + 1
    out[shard + 1] = tonumber(epoch)
  else
    out[shard + 1] = 0
    if not owner then free[#free + 1] = shard end
  end
end
for _, shard in ipairs(free) do
  if mine >= share then break end
  local epoch = redis.call('HINCRBY', KEYS[2], 'epoch:' .. (shard - 1) .. ':' .. group, 1)
  redis.call('SET', KEYS[shard + 2], epoch .. ':' .. me, 'NX', 'PX', lease)
  mine = mine + 1
  out[shard + 1] = epoch
end
return out
