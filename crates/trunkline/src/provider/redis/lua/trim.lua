-- KEYS: a stream
-- ARGV: how long settled entries are kept in ms, how many entries are kept, how many bytes; -1 for each: none
-- Never passes an entry that a group has not settled, and does nothing where there is no group.
-- Returns how many entries were removed.
local stream = KEYS[1]
local age, count, bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('EXISTS', stream) == 0 then return 0 end
local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function below(a, b)
  local am, as = parts(a)
  local bm, bs = parts(b)
  return am < bm or (am == bm and as < bs)
end
local floor
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local info = {}
  for at = 1, #fields, 2 do info[fields[at]] = fields[at + 1] end
  local unsettled = info['last-delivered-id']
  if info['pending'] > 0 then unsettled = redis.call('XPENDING', stream, info['name'])[2] end
  if not floor or below(unsettled, floor) then floor = unsettled end
end
if not floor then return 0 end
local removed = 0
if age >= 0 then
  local time = redis.call('TIME')
  local before = string.format('%.0f-0', time[1] * 1000 + math.floor(time[2] / 1000) - age)
  if below(floor, before) then before = floor end
  removed = redis.call('XTRIM', stream, 'MINID', '~', before)
end
local length = redis.call('XLEN', stream)
local over = 0
if count >= 0 then over = length - count end
if bytes >= 0 and length > 0 then
  -- Of a sample of the stream; where the user may not ask for it, only age and count bound the stream.
  local used = redis.pcall('MEMORY', 'USAGE', stream, 'SAMPLES', 5)
  if type(used) == 'number' and used > bytes then over = math.max(over, math.ceil(length * (1 - bytes / used))) end
end
if over > 0 then removed = removed + redis.call('XTRIM', stream, 'MINID', '~', floor, 'LIMIT', over) end
return removed
