-- Empties a fenced slot before it is filled again. Its counters stay until unfence replaces them.
--
-- KEYS     sale tickets buyers deadlines ledger
-- ARGV     token: the fence's
-- Returns  {ok}, or {fenced} where another holds the fence
-- Ledger   nothing: the ledger itself goes, since the store has it
--@include fence
local keys = { sale = KEYS[1], tickets = KEYS[2], buyers = KEYS[3], deadlines = KEYS[4], ledger = KEYS[5] }
local token = ARGV[1]
if not holds_fence(keys.sale, token) then
  return { OUTCOME.fenced }
end
redis.call('UNLINK', keys.tickets, keys.buyers, keys.deadlines, keys.ledger)
return { OUTCOME.ok }
