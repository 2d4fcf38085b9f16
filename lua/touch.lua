-- Writes something, so that a wait that follows on its connection covers all that was written before.
-- Such a wait covers its own connection's last write, and what is waited for was written on another.
--
-- KEYS     sale
-- ARGV     now: any text
-- Returns  {ok}
-- Ledger   nothing
--@include outcomes
local keys = { sale = KEYS[1] }
local now = ARGV[1]
-- A deletion first: memory may be full, and what is paid can be made safe all the same.
redis.call('HDEL', keys.sale, '-')
redis.call('HSET', keys.sale, 'touched', now)
return { OUTCOME.ok }
