-- KEYS: the streams
-- ARGV: group, then for each stream the id it has read up to
for at, stream in ipairs(KEYS) do
  -- Made anew in the same step: who waits in a read goes on from the new place, and nothing is pending.
  if redis.call('XGROUP', 'DESTROY', stream, ARGV[1]) == 0 then
    return redis.error_reply('NOGROUP no such group')
  end
  redis.call('XGROUP', 'CREATE', stream, ARGV[1], ARGV[at + 1])
end
return 1
