-- KEYS: a stream
-- ARGV: group, then consumers
local reaped = 0
for at = 2, #ARGV do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[at]) == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[at])
    reaped = reaped + 1
  end
end
return reaped
