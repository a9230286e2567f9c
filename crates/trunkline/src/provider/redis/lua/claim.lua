-- KEYS: a stream, and for an ordered shard its owner
-- ARGV: group, consumer, the owner it must be or '', then ids
-- Returns the entries, or nil if somebody else owns the shard.
if KEYS[2] and redis.call('GET', KEYS[2]) ~= ARGV[3] then return false end
local claim = { 'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0 }
for at = 4, #ARGV do claim[#claim + 1] = ARGV[at] end
return redis.call(unpack(claim))
