/** What a sale is at the moment, as a word: from its counters, its window, and the server's clock. */

import { serverNow } from "./clock.js";

/** @typedef {"not_ready" | "not_yet_open" | "closed" | "sold_out" | "all_held" | "open"} SaleState */

/** @returns {SaleState} */
export function stateOf(sale, now = serverNow()) {
  if (sale.ready === false) return "not_ready";
  if (sale.closes_at !== null && Date.parse(sale.closes_at) <= now) return "closed";
  if (sale.opens_at !== null && Date.parse(sale.opens_at) > now) return "not_yet_open";
  if (sale.available > 0) return "open";
  return mayComeBack(sale) > 0 ? "all_held" : "sold_out";
}

/** Units of a sale or an item that are not free and not sold: held, or on their way between shards. */
export const mayComeBack = (counts) => counts.reserved + (counts.in_transit ?? 0);

/** The word for people. */
export const STATE_WORDS = {
  not_ready: "Not ready",
  not_yet_open: "Not yet open",
  closed: "Closed",
  sold_out: "Sold out",
  all_held: "All held",
  open: "Open",
};

/** The next instant at which the window changes the state, Unix milliseconds; null when it will not. */
export function nextChange(sale, now = serverNow()) {
  const instants = [sale.opens_at, sale.closes_at].filter((each) => each !== null).map((each) => Date.parse(each));
  const ahead = instants.filter((each) => each > now);
  return ahead.length > 0 ? Math.min(...ahead) : null;
}

/** What an item is called. A sale of one item that nobody named is called after the sale. */
export function itemName(sale, sku) {
  const item = sale.items.find((each) => each.sku === sku);
  if (!item) return sku;
  return sale.items.length === 1 && item.name === "general" ? sale.name : item.name;
}

/** The lines of a ticket: "2 × Standing, 1 × Balcony". */
export const linesText = (sale, lines) => lines.map((line) => `${line.quantity} × ${itemName(sale, line.sku)}`).join(", ");
