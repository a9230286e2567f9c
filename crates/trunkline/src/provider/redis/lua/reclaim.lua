-- KEYS: a stream, the topic's meta hash
-- ARGV: group, the field of the round, the round as it was (not looked at), consumer, the idle time in ms after which a lease has ended, the cursor, how many
-- Returns the round, the next cursor, the entries, how often each was handed out, and how many were not in the stream any more.
local round = tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or '') or 0
local claimed = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[4], ARGV[5], ARGV[6], 'COUNT', ARGV[7])
local counts = {}
for at, entry in ipairs(claimed[2]) do
  counts[at] = redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1)[1][4]
end
return { round, claimed[1], claimed[2], counts, #claimed[3] }
