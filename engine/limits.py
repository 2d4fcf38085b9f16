"""Every limit of the engine: a named constant, its unit, and why it has that value."""

from __future__ import annotations

#: Sales, skus: what may name one. Lower case and short, since they stand in Redis keys, addresses and ticket ids.
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,63}$"

#: Characters in the display name of a sale or an item: it is read by people and stored with every amendment.
DISPLAY_NAME_CHARS_MAX = 200

#: Units of one item. Lua counts in doubles, exact to 2^53; a thousand million leaves room for any sum of items.
CAPACITY_MAX = 1_000_000_000

#: Items in one sale. All counters of a sale are read and written once per script call; 100 keep that under 0.1 ms.
ITEMS_MAX = 100

#: Slots over which one sale may be divided. Each has counters, a ledger and a cursor of its own, and to look at the
#: whole sale is to ask all of them: 64 are more nodes than a sale of one company meets.
SHARDS_MAX = 64

#: Units on one line of a ticket: no order of a person comes near, and sums stay far from CAPACITY_MAX.
QUANTITY_MAX = 1_000_000

#: Lines in one ticket, before lines of the same sku are added up.
LINES_MAX = 50

#: Milliseconds, shortest and longest hold: one millisecond so that tests may be quick, 30 days for orders by post.
HOLD_MS_MIN = 1
HOLD_MS_MAX = 30 * 24 * 3600 * 1000

#: Milliseconds that a ticket keeps its units when the sale does not say (15 minutes: time to find a card).
HOLD_MS_DEFAULT = 900_000

#: Unix milliseconds: the largest instant that formats as a four-digit year (9999-12-31T23:59:59.999Z).
INSTANT_MS_MAX = 253_402_300_799_999

#: Characters that name a buyer to the engine. A token's subject or a fingerprint; hashed at once, never kept.
BUYER_CHARS_MAX = 512

#: Characters of a client's fingerprint: 8 at least, or guessing another's is a matter of minutes.
FINGERPRINT_CHARS_MIN = 8
FINGERPRINT_CHARS_MAX = 128

#: Characters of an idempotency key, visible ASCII.
KEY_CHARS_MAX = 255

#: Characters of a payment reference, none of them a control character: it stands at the end of a ledger line.
REFERENCE_CHARS_MAX = 255

#: Tickets that one script call takes. 6 to 8 us each in Redis on a slow core (measured): 150 keep a call well under
#: 2 ms, for which everybody else waits.
BATCH_MAX = 150

#: Characters of what varies in the calls of one batch (lines, payment references): tickets of many lines cost by the
#: line. 150 orders of one line are about 600, and a ticket of 50 lines is about 400.
BATCH_CHARS_MAX = 6_000

#: Tickets of one sale that wait for their turn in one process. At 15,000/s this is more than a second of waiting,
#: after which refusing with `overloaded` is kinder than queueing.
QUEUE_MAX = 20_000

#: Entries of one batch call over HTTP. A worker does nothing else while it takes them and while it answers: 500 keep
#: that to a few milliseconds, and save what can be saved of a call's cost.
ENTRIES_MAX = 500

#: Rows of one page of a listing.
PAGE_MAX = 500
