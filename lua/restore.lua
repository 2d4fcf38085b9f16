-- Fills a fenced slot with tickets: their records, what their buyers have, and the deadlines of those that are held.
--
-- KEYS     sale tickets buyers deadlines
-- ARGV     token: the fence's; items: how many the sale has
--          id..., buyer..., lines..., record...: a batch, as many of each, the oldest first. LINES count for the buyer,
--          and are - for a ticket that ended unpaid; id and record are empty for a purchase that the store alone keeps
-- Returns  {ok}, or {fenced} where another holds the fence
-- Ledger   nothing
--@include fence
--@include tickets
local keys = { sale = KEYS[1], tickets = KEYS[2], buyers = KEYS[3], deadlines = KEYS[4] }
local token, items = ARGV[1], tonumber(ARGV[2])
if not holds_fence(keys.sale, token) then
  return { OUTCOME.fenced }
end

-- As much of a slot as the includes about buyers look at.
local slot = { keys = keys, counts = {}, buyers = {}, changed_buyers = { n = 0 }, buyer_writes = { n = 0 } }
for at = 1, 3 * items do
  slot.counts[at] = 0
end

local size = (#ARGV - 2) / 4
load_buyers(slot, { unpack(ARGV, size + 3, 2 * size + 2) })
local writes, n, deadlines = {}, 0, {}
for i = 1, size do
  local id, buyer, lines, record = ARGV[2 + i], ARGV[2 + size + i], ARGV[2 + 2 * size + i], ARGV[2 + 3 * size + i]
  give_to_buyer(slot, buyer, lines, id)
  if id ~= '' then
    writes[n + 1], writes[n + 2] = id, record
    n = n + 2
    local _, expires_at = held(record)
    if expires_at then
      deadlines[expires_at] = (deadlines[expires_at] or '') .. id
    end
  end
end
if n > 0 then
  redis.call('HSET', keys.tickets, unpack(writes, 1, n))
end
commit_buyers(slot)
for expires_at, ids in pairs(deadlines) do
  redis.call('ZADD', keys.deadlines, whole(expires_at), ids)
end
return { OUTCOME.ok }
