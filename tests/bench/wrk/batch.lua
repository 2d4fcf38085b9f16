-- Reserves in batches, as a gateway would; every entry is for a buyer of its own.
--
-- arguments  after those of common.lua: the operator's token, entries in one batch
dofile(os.getenv('BENCH_WRK') .. '/common.lua')

function init(args)
  prepare(args)
  size = tonumber(args[5])
  -- The prefix and nine digits with the hyphen between them.
  local entry = #'{"buyer":"","quantity":1},' + #prefix + 10
  head = 'POST /sales/' .. sale .. '/tickets/batch HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n'
    .. 'Authorization: Bearer ' .. args[4] .. '\r\nContent-Length: '
    .. (#'{"entries":[' + size * entry - 1 + #']}') .. '\r\n\r\n{"entries":['
end

function request()
  local entries = {}
  for i = 1, size do
    entries[i] = '{"buyer":"' .. buyer_name() .. '","quantity":1}'
  end
  return head .. table.concat(entries, ',') .. ']}'
end
