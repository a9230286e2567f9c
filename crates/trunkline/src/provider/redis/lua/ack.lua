-- KEYS: a stream, the owner of its shard
-- ARGV: group, the owner it must be, then ids
-- Returns how many were acked, -1 if somebody else owns the shard.
if redis.call('GET', KEYS[2]) ~= ARGV[2] then return -1 end
local ack = { 'XACK', KEYS[1], ARGV[1] }
for at = 3, #ARGV do ack[#ack + 1] = ARGV[at] end
return redis.call(unpack(ack))
