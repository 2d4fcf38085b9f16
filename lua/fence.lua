-- Fences a slot for rebuilding: every transition is refused while the token stands. Takes over another's fence.
--
-- KEYS     sale
-- ARGV     token: of this rebuild
-- Returns  {ok, now, epoch or nothing, sequence or nothing, resumed}; resumed is 1 where another fence stood
-- Ledger   nothing
--@include outcomes
--@include clock
local keys = { sale = KEYS[1] }
local token = ARGV[1]
-- Something else under this name is damage, and a sale that cannot be fenced could not be rebuilt.
if redis.call('TYPE', keys.sale).ok ~= 'hash' then
  redis.call('UNLINK', keys.sale)
end
local field = redis.call('HMGET', keys.sale, 'epoch', 'sequence', 'fence')
redis.call('HSET', keys.sale, 'fence', token)
return { OUTCOME.ok, clock(), field[1] or '', field[2] or '', field[3] and 1 or 0 }
