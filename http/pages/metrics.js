/** What callers heard, from the server's metrics: `holdfast_outcomes_total{call,sale,outcome}`. */

import { address } from "./api.js";
import { asOperator } from "./session.js";

const NAME = "holdfast_outcomes_total";

/**
 * Reads the counters of outcomes; null where this server has no metrics.
 *
 * @param {AbortSignal} [signal]
 * @returns {Promise<{call: string, sale: string, outcome: string, value: number}[] | null>}
 */
export async function outcomes(signal) {
  const response = await fetch(address("/metrics"), { headers: asOperator(), cache: "no-store", credentials: "omit", signal });
  if (!response.ok) return null;
  return parse(await response.text());
}

/** The counters of outcomes in Prometheus' text. */
export function parse(text) {
  const found = [];
  for (const line of text.split("\n")) {
    if (!line.startsWith(`${NAME}{`)) continue;
    const end = line.lastIndexOf("}");
    const labels = Object.fromEntries([...line.slice(NAME.length + 1, end).matchAll(/(\w+)="([^"]*)"/g)].map((each) => [each[1], each[2]]));
    found.push({ call: labels.call ?? "", sale: labels.sale ?? "", outcome: labels.outcome ?? "", value: Number(line.slice(end + 1).trim().split(" ")[0]) });
  }
  return found;
}
