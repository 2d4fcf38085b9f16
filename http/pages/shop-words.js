/** What a buyer is told: of refusals, and of the state that a sale is in. */

import { countdown, count, duration, moment, plural } from "./format.js";
import { itemName } from "./sale-state.js";

/**
 * A refused reservation in words.
 *
 * @param {import("./api.js").Refused} refusal
 * @returns {{title: string, words: string}}
 */
export function refusedReservation(refusal, sale) {
  const { code, problem } = refusal;
  const name = problem.sku ? itemName(sale, problem.sku) : sale.name;
  const left = problem.available ?? 0;
  switch (code) {
    case "sold_out":
      return left > 0
        ? { title: `Only ${count(left)} left`, words: `That is all there will be of ${name}. Choose fewer.` }
        : { title: "Sold out", words: `${name} is gone, and nothing of it is held that could come back.` };
    case "all_held":
      return {
        title: left > 0 ? `Only ${count(left)} free at the moment` : "All held by others",
        words: `The rest of ${name} is in other buyers' hands. What they do not pay comes back.`,
      };
    case "limit_reached":
      return problem.remaining > 0
        ? { title: "That is more than one buyer may have", words: `You may take ${count(problem.remaining)} more of ${name}.` }
        : { title: "You have reached the limit", words: `One buyer cannot have more of ${name}, held and paid together.` };
    case "not_yet_open":
      return { title: "Not open yet", words: `Sales begin ${moment(problem.opens_at)}.` };
    case "closed":
      return { title: "The sale is closed", words: "Nothing more is sold. Tickets that you hold can still be paid." };
    case "unknown_sale":
      return { title: "There is no such sale", words: "It may have been spelled differently." };
    case "buyer_token_required":
      return NEEDS_TOKEN;
    default:
      return { title: "That was refused", words: mistakes(problem) ?? refusal.message };
  }
}

/** A refused payment or cancellation in words. @returns {{title: string, words: string}} */
export function refusedTicket(refusal) {
  switch (refusal.code) {
    case "payment_declined":
      return { title: "The payment was declined", words: "The ticket is still held for you until its time is up. Try again." };
    case "ticket_expired":
      return { title: "Too late", words: "The hold ran out before the payment came. You were not charged." };
    case "already_cancelled":
      return { title: "Given back already", words: "This ticket was cancelled before." };
    case "already_purchased":
      return { title: "Paid already", words: "This ticket was paid before, and cannot be given back." };
    case "not_your_ticket":
    case "unknown_ticket":
      return { title: "Not your ticket", words: "It was made by another browser, or this one has forgotten who it was." };
    default:
      return { title: "That was refused", words: mistakes(refusal.problem) ?? refusal.message };
  }
}

/** Said where buyers need a signed token, which this page has no way to get. */
export const NEEDS_TOKEN = {
  title: "This page cannot sell here",
  words:
    "The server wants every buyer to show a signed token, which only the seller's own site can hand out. " +
    "Buy there; this page goes on showing what is left.",
};

/** What takes longer, and why: it is asked for again by itself. */
export function troubleWords(error) {
  switch (error.code) {
    case "overloaded":
      return "Very many people are asking. You are still in line; we ask again by ourselves.";
    case "not_ready":
      return "The server cannot sell at the moment. Nothing was lost; we ask again by ourselves.";
    case "not_yet_open":
      return "A moment too early. We ask again in the moment in which it opens.";
    case "outcome_unknown":
      return "The server does not know yet whether it worked. We ask again with the same key, so nothing happens twice.";
    default:
      return "The connection was lost. We ask again with the same key, so nothing happens twice.";
  }
}

/** What stands beside the button. @param {import("./sale-state.js").SaleState} state @returns {string} */
export function stockWords(state, sale, now) {
  switch (state) {
    case "not_ready":
      return "The sale cannot be read at the moment.";
    case "not_yet_open":
      return `Opens in ${countdown(Date.parse(sale.opens_at) - now)}, ${moment(sale.opens_at)}`;
    case "closed":
      return "This sale is closed.";
    case "sold_out":
      return "Sold out.";
    case "all_held":
      return `Nothing free: ${plural(sale.reserved, "unit is", "units are")} held by others and may come back.`;
    default:
      return "";
  }
}

/** The facts under the name. @returns {string} */
export function facts(sale) {
  const parts = [`Held for you for ${duration(sale.hold_ms)}`];
  if (sale.max_per_buyer !== null) parts.push(`at most ${count(sale.max_per_buyer)} per buyer`);
  if (sale.closes_at !== null) parts.push(`until ${moment(sale.closes_at)}`);
  return parts.join(" · ");
}

function mistakes(problem) {
  return problem.errors?.map((each) => `${each.pointer.replace(/^\//, "") || "The request"}: ${each.detail}`).join("; ");
}
