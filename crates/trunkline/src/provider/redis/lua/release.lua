-- KEYS: a stream, the topic's meta hash
-- ARGV: group, the field of the round, the round, consumer, the consumer that holds what was given back, then for each: id, how long it is to count as idle, its count
-- Returns the round, then for each 1, or 0 if this consumer did not hold it any more.
local stream, group, me, to = KEYS[1], ARGV[1], ARGV[4], ARGV[5]
local round = tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or '') or 0
local out = { round }
for at = 6, #ARGV, 3 do
  local id = ARGV[at]
  if round ~= tonumber(ARGV[3]) or #redis.call('XPENDING', stream, group, id, id, 1, me) == 0 then
    out[#out + 1] = 0
  else
    redis.call('XCLAIM', stream, group, to, 0, id, 'IDLE', ARGV[at + 1], 'RETRYCOUNT', ARGV[at + 2], 'JUSTID')
    out[#out + 1] = 1
  end
end
return out
