-- KEYS: a stream, the topic's meta hash, and for an ordered shard its owner
-- ARGV: group, the field of the round, the round, the owner it must be or '', then ids
-- Returns how many were acked, -1 if somebody else owns the shard, -2 if the group was set back since; and the round.
local round = tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or '') or 0
if round ~= tonumber(ARGV[3]) then return { -2, round } end
if KEYS[3] and redis.call('GET', KEYS[3]) ~= ARGV[4] then return { -1, round } end
local ack = { 'XACK', KEYS[1], ARGV[1] }
for at = 5, #ARGV do ack[at - 1] = ARGV[at] end
return { redis.call(unpack(ack)), round }
