/*
 * Peer `fastify`: Fastify and ioredis, one EVALSHA for each request, of a script that does the same work as Holdfast's
 * (../lua/reserve.lua: limit per buyer, stock, ticket with a deadline, index of deadlines, ledger entry, lease).
 *
 * What is done for it: JSON schemas for bodies and answers (Fastify compiles both), no logger, one connection over
 * Redis' unix socket, automatic pipelining on or off (the set-up tries both and keeps the better), random bytes drawn
 * 16 KiB at a time. Redis is set up as Holdfast's own. Due holds are swept five times a second. A buyer is the
 * fingerprint as it came.
 *
 * Usage: NODE_PATH=.../node_modules node server.js SOCKET AUTO_PIPELINING (0 or 1)
 */
'use strict'

const crypto = require('node:crypto')
const fs = require('node:fs')
const path = require('node:path')
const fastify = require('fastify')
const Redis = require('ioredis')

const [socket, autoPipelining] = process.argv.slice(2)
const SWEEP_MS = 200
const SWEEP_MAX = 150
// Bytes drawn at a time for ids of 16: a draw costs more than the bytes.
const RANDOM_BYTES = 16384

const script = (name) => fs.readFileSync(path.join(__dirname, '..', 'lua', `${name}.lua`), 'utf8')
const redis = new Redis({
  path: socket,
  enableAutoPipelining: autoPipelining === '1',
  scripts: {
    reserveOne: { lua: script('reserve'), numberOfKeys: 6 },
    confirmOne: { lua: script('confirm'), numberOfKeys: 5 },
    sweepSome: { lua: script('sweep'), numberOfKeys: 5 }
  }
})

const pool = Buffer.alloc(RANDOM_BYTES)
let drawn = RANDOM_BYTES
function randomId () {
  if (drawn === RANDOM_BYTES) {
    crypto.randomFillSync(pool)
    drawn = 0
  }
  drawn += 16
  return pool.toString('base64url', drawn - 16, drawn)
}

// Built once for each sale.
const known = new Map()
function keysOf (sale) {
  let keys = known.get(sale)
  if (!keys) {
    const prefix = `fs:{${sale}}:`
    keys = {
      sale: prefix + 'sale',
      tickets: prefix + 'tickets',
      buyers: prefix + 'buyers',
      deadlines: prefix + 'deadlines',
      ledger: prefix + 'ledger',
      lease: prefix + 'lease:'
    }
    known.set(sale, keys)
  }
  return keys
}

const line = { type: 'object', properties: { sku: { type: 'string' }, quantity: { type: 'integer' } } }
const ticketSchema = {
  type: 'object',
  properties: {
    id: { type: 'string' },
    sale: { type: 'string' },
    status: { type: 'string' },
    lines: { type: 'array', items: line },
    quantity: { type: 'integer' },
    reserved_at: { type: 'string' },
    expires_at: { type: 'string' },
    expires_in_ms: { type: 'integer' },
    purchased_at: { type: 'string' }
  }
}
const refusalSchema = {
  type: 'object',
  properties: {
    type: { type: 'string' },
    title: { type: 'string' },
    status: { type: 'integer' },
    detail: { type: 'string' },
    code: { type: 'string' },
    request_id: { type: 'string' },
    sku: { type: 'string' },
    available: { type: 'integer' }
  }
}
const buyerHeaders = {
  type: 'object',
  properties: { 'x-buyer-fingerprint': { type: 'string', minLength: 8, maxLength: 128 } },
  required: ['x-buyer-fingerprint']
}
const reserveSchema = {
  headers: buyerHeaders,
  body: {
    type: 'object',
    properties: { quantity: { type: 'integer', minimum: 1, maximum: 1000000 } },
    required: ['quantity'],
    additionalProperties: false
  },
  response: { 201: ticketSchema, '4xx': refusalSchema }
}

function refuse (request, reply, status, code, more) {
  reply.code(status).header('content-type', 'application/problem+json').header('cache-control', 'no-store')
  return {
    type: '/docs/errors#' + code, title: code, status, detail: code, code, request_id: String(request.id), ...more
  }
}

function ticketOf (id, sale, status, quantity, reservedAt, expiresAt, now) {
  return {
    id,
    sale,
    status,
    lines: [{ sku: 'general', quantity }],
    quantity,
    reserved_at: new Date(reservedAt).toISOString(),
    expires_at: new Date(expiresAt).toISOString(),
    expires_in_ms: status === 'reserved' ? expiresAt - now : 0
  }
}

const app = fastify({ logger: false, requestIdHeader: 'x-request-id' })

app.post('/sales', async (request, reply) => {
  const { id, capacity, hold_ms: hold = 900000, max_per_buyer: limit = 0 } = request.body
  await redis.hset(keysOf(id).sale, { available: capacity, reserved: 0, purchased: 0, hold_ms: hold, max_per_buyer: limit })
  reply.code(201)
  return { id }
})

app.get('/sales/:sale', async (request, reply) => {
  const counts = await redis.hmget(keysOf(request.params.sale).sale, 'available', 'reserved', 'purchased')
  const [available, reserved, purchased] = counts.map(Number)
  return { available, reserved, purchased }
})

app.post('/sales/:sale/tickets', { schema: reserveSchema }, async (request, reply) => {
  const { sale } = request.params
  const { quantity } = request.body
  const keys = keysOf(sale)
  const id = randomId()
  const [outcome, now, expiresAt] = await redis.reserveOne(
    keys.sale, keys.tickets, keys.buyers, keys.deadlines, keys.ledger, keys.lease + id,
    id, request.headers['x-buyer-fingerprint'], quantity
  )
  if (outcome === 'ok') {
    const ticket = `${sale}.${id}`
    reply.code(201).header('location', `/tickets/${ticket}`).header('cache-control', 'no-store')
      .header('x-request-id', request.id)
    return ticketOf(ticket, sale, 'reserved', quantity, now, expiresAt, now)
  }
  if (outcome === 'unknown_sale') return refuse(request, reply, 404, outcome)
  return refuse(request, reply, 409, outcome, { sku: 'general', available: now })
})

app.post('/tickets/:ticket/payment', { schema: { headers: buyerHeaders, response: { 200: ticketSchema } } },
  async (request, reply) => {
    const { ticket } = request.params
    const dot = ticket.indexOf('.')
    const sale = ticket.slice(0, dot)
    const id = ticket.slice(dot + 1)
    const keys = keysOf(sale)
    const [outcome, now, quantity, reservedAt, expiresAt] = await redis.confirmOne(
      keys.sale, keys.tickets, keys.deadlines, keys.ledger, keys.lease + id, id, request.headers['x-buyer-fingerprint']
    )
    if (outcome !== 'ok') return refuse(request, reply, 409, outcome)
    reply.header('cache-control', 'no-store').header('x-request-id', request.id)
    const paid = ticketOf(ticket, sale, 'purchased', quantity, reservedAt, expiresAt, now)
    paid.purchased_at = new Date(now).toISOString()
    return paid
  })

async function sweep () {
  for (const keys of known.values()) {
    while (await redis.sweepSome(keys.sale, keys.tickets, keys.buyers, keys.deadlines, keys.ledger, SWEEP_MAX) === SWEEP_MAX);
  }
  setTimeout(sweep, SWEEP_MS)
}

app.listen({ host: '127.0.0.1', port: 0, backlog: 4096 }).then((address) => {
  sweep()
  console.log(`serves on ${address}`)
})
