-- Amends a sale while it sells: its rules, its window, its capacities. Items are added at the end and never removed.
-- Of a sale in shards it amends this one.
--
-- KEYS     sale tickets buyers deadlines ledger
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold; version: the one that this definition replaces;
--          definition: JSON with a later version; rules; capacities: of each item, packed; of a shard its share
-- Returns  {ok|replayed|version_changed|sweep_first|missing|fenced|behind} or {capacity_in_use, item, in_use}
-- Ledger   s DEFINITION; x as in expire, for holds that had run out
--@include commit
--@include tickets
--@include sweep
--@include transfers

local floor, version, definition, rules, capacities = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], numbers(ARGV[5])
local slot, refused = open_slot({
  sale = KEYS[1], tickets = KEYS[2], buyers = KEYS[3], deadlines = KEYS[4], ledger = KEYS[5],
}, floor)
if not slot then
  return { refused }
end
local field = redis.call('HMGET', slot.keys.sale, 'version', 'definition')
if tonumber(field[1]) ~= version then
  return { field[2] == definition and OUTCOME.replayed or OUTCOME.version_changed }
end
local lent = transfers_of(slot).lent
for item, capacity in ipairs(capacities) do
  -- What is lent is not here, and what is borrowed is.
  capacities[item] = capacity - (lent[item] or 0)
end

local function too_small()
  for item, capacity in ipairs(capacities) do
    local in_use = (slot.counts[3 * item - 1] or 0) + (slot.counts[3 * item] or 0)
    if capacity < in_use then
      return item, in_use
    end
  end
end

local item, in_use = too_small()
if item then
  -- Holds that have run out may be what is in the way.
  if sweep(slot) > 0 then
    item, in_use = too_small()
  end
  if item then
    commit(slot)
    if slot.more_due then
      return { OUTCOME.sweep_first }
    end
    return { OUTCOME.capacity_in_use, item, in_use }
  end
end
for at, capacity in ipairs(capacities) do
  local reserved, purchased = slot.counts[3 * at - 1] or 0, slot.counts[3 * at] or 0
  slot.counts[3 * at - 2] = capacity - reserved - purchased
  slot.counts[3 * at - 1], slot.counts[3 * at] = reserved, purchased
end
log_line(slot, 's ' .. definition)
slot.sale_fields = { 'definition', definition, 'version', whole(cjson.decode(definition).version), 'rules', rules }
commit(slot)
return { OUTCOME.ok }
