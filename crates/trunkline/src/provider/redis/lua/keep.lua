-- KEYS: a stream
-- ARGV: group, consumer, then ids in ascending order
-- Returns the ids that are pending for this consumer no more.
local group, me = ARGV[1], ARGV[2]
local mine = {}
for _, entry in ipairs(redis.call('XPENDING', KEYS[1], group, ARGV[3], ARGV[#ARGV], 1000000, me)) do
  mine[entry[1]] = true
end
local claim, lost = { 'XCLAIM', KEYS[1], group, me, 0 }, {}
for at = 3, #ARGV do
  local id = ARGV[at]
  if mine[id] then claim[#claim + 1] = id else lost[#lost + 1] = id end
end
if #claim > 5 then
  claim[#claim + 1] = 'JUSTID'
  local kept = {}
  for _, id in ipairs(redis.call(unpack(claim))) do kept[id] = true end
  -- Of an entry that was deleted nothing is left to keep.
  for at = 6, #claim - 1 do
    if not kept[claim[at]] then lost[#lost + 1] = claim[at] end
  end
end
return lost
