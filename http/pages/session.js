/**
 * The operator's token: out of the address into this tab, and nowhere else. A fragment is never sent to a server, and
 * what sessionStorage has is gone with the tab.
 */

import { tab } from "./kept.js";

const KEPT_AS = "holdfast.operator";

/** The token of this tab. @returns {string | null} */
export const token = () => tab.get(KEPT_AS);

/** Keeps the token, or with null forgets it. */
export function keepToken(value) {
  if (value === null) tab.drop(KEPT_AS);
  else tab.set(KEPT_AS, value);
}

/** The header by which the server knows the operator. @returns {Record<string, string>} */
export const asOperator = (value = token()) => ({ Authorization: `Bearer ${value}` });

/**
 * Reads the fragment, `#token=...&sale=ID`, and takes the token out of the address at once.
 *
 * @returns {{sale: string | null, brought: boolean}} the sale that is asked for; whether a token came with it
 */
export function readFragment() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const given = parts.get("token");
  if (given !== null) {
    parts.delete("token");
    history.replaceState(null, "", `${location.pathname}${location.search}${parts.size > 0 ? `#${parts}` : ""}`);
    if (given !== "") keepToken(given);
  }
  return { sale: parts.get("sale"), brought: Boolean(given) };
}

/** Writes into the address which sale is looked at. */
export function writeSale(sale) {
  const wanted = sale === null ? location.pathname : `#sale=${encodeURIComponent(sale)}`;
  if (location.hash !== wanted) history.pushState(null, "", wanted);
}
