-- KEYS: the topic's meta hash, then streams
-- ARGV: group, then for each stream: the field of its round, the id the group has read up to
for at = 2, #KEYS do
  -- Made anew in the same step: who waits in a read goes on from the new place, and nothing is pending.
  if redis.call('XGROUP', 'DESTROY', KEYS[at], ARGV[1]) == 0 then
    return redis.error_reply('NOGROUP no such group')
  end
  redis.call('XGROUP', 'CREATE', KEYS[at], ARGV[1], ARGV[at * 2 - 1])
  -- What was handed out before is of an earlier round: it settles nothing of this one.
  redis.call('HINCRBY', KEYS[1], ARGV[at * 2 - 2], 1)
end
return 1
