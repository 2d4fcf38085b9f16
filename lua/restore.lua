-- Fills a part of a fenced slot: tickets, buyers or deadlines, a batch at a time.
--
-- KEYS     sale tickets buyers deadlines
-- ARGV     token: the fence's; part: tickets, buyers or deadlines; then field and value, or score and member, in turn
-- Returns  {ok}, or {fenced} where another holds the fence
-- Ledger   nothing
--@include fence
local keys = { sale = KEYS[1], tickets = KEYS[2], buyers = KEYS[3], deadlines = KEYS[4] }
local token, part = ARGV[1], ARGV[2]
if not holds_fence(keys.sale, token) then
  return { OUTCOME.fenced }
end
local command = part == 'deadlines' and 'ZADD' or 'HSET'
redis.call(command, keys[part], unpack(ARGV, 3))
return { OUTCOME.ok }
