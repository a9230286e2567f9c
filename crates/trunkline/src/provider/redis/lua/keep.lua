-- KEYS: a stream, the topic's meta hash
-- ARGV: group, the field of the round, the round, consumer, then ids in ascending order
-- Returns the round, then the ids that are pending for this consumer no more: all, if the group was set back since.
local group, me = ARGV[1], ARGV[4]
local round = tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or '') or 0
local out = { round }
local mine = {}
if round == tonumber(ARGV[3]) then
  for _, entry in ipairs(redis.call('XPENDING', KEYS[1], group, ARGV[5], ARGV[#ARGV], 1000000, me)) do
    mine[entry[1]] = true
  end
end
local claim = { 'XCLAIM', KEYS[1], group, me, 0 }
for at = 5, #ARGV do
  local id = ARGV[at]
  if mine[id] then claim[#claim + 1] = id else out[#out + 1] = id end
end
if #claim > 5 then
  claim[#claim + 1] = 'JUSTID'
  local kept = {}
  for _, id in ipairs(redis.call(unpack(claim))) do kept[id] = true end
  -- Of an entry that was deleted nothing is left to keep.
  for at = 6, #claim - 1 do
    if not kept[claim[at]] then out[#out + 1] = claim[at] end
  end
end
return out
