-- The whole flow: reserves, and pays for what was reserved. wrk does not say which connection an answer came on, so
-- the buyer goes out as X-Request-Id too, and comes back with the ticket: who gets the next turn pays for it.
dofile(os.getenv('BENCH_WRK') .. '/common.lua')

function init(args)
  prepare(args)
  first, last, tickets, buyers = 1, 0, {}, {}
end

function response(status, headers, body)
  count(status)
  if status == 201 then
    last = last + 1
    tickets[last] = string.match(body, '"id": *"([^"]+)"')
    buyers[last] = headers['X-Request-Id'] or headers['x-request-id']
  end
end

function request()
  if first > last then
    local buyer = buyer_name()
    return reserve_request(buyer .. '\r\nX-Request-Id: ' .. buyer)
  end
  local ticket, buyer = tickets[first], buyers[first]
  tickets[first], buyers[first] = nil, nil
  first = first + 1
  return 'POST /tickets/' .. ticket .. '/payment HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n'
    .. 'X-Buyer-Fingerprint: ' .. buyer .. '\r\nX-Request-Id: ' .. buyer .. '\r\n\r\n'
end
