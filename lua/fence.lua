-- Fences a slot for rebuilding: every transition is refused while the token stands. Takes over another's fence.
--
-- KEYS     sale
-- ARGV     token: of this rebuild
-- Returns  {ok, epoch or nothing, sequence or nothing}
-- Ledger   nothing
--@include outcomes
local keys = { sale = KEYS[1] }
local token = ARGV[1]
redis.call('HSET', keys.sale, 'fence', token)
local field = redis.call('HMGET', keys.sale, 'epoch', 'sequence')
return { OUTCOME.ok, field[1] or '', field[2] or '' }
