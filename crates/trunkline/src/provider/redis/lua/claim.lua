-- KEYS: a stream, the topic's meta hash, and for an ordered shard its owner
-- ARGV: group, the field of the round, the round as it was (not looked at), consumer, the owner it must be or '', then ids
-- Returns the round and the entries, or nil if somebody else owns the shard.
if KEYS[3] and redis.call('GET', KEYS[3]) ~= ARGV[5] then return false end
local claim = { 'XCLAIM', KEYS[1], ARGV[1], ARGV[4], 0 }
for at = 6, #ARGV do claim[at] = ARGV[at] end
local round = tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or '') or 0
return { round, redis.call(unpack(claim)) }
