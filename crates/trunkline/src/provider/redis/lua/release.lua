-- KEYS: a stream
-- ARGV: group, consumer, the consumer that holds what was given back, then for each: id, how long it is to count as idle, its count
-- Returns for each 1, or 0 if this consumer did not hold it.
local stream, group, me, to = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local out = {}
for at = 4, #ARGV, 3 do
  local id = ARGV[at]
  if #redis.call('XPENDING', stream, group, id, id, 1, me) == 0 then
    out[#out + 1] = 0
  else
    redis.call('XCLAIM', stream, group, to, 0, id, 'IDLE', ARGV[at + 1], 'RETRYCOUNT', ARGV[at + 2], 'JUSTID')
    out[#out + 1] = 1
  end
end
return out
