/**
 * Who buys: a fingerprint of 160 random bits, made once and kept by the browser. Whoever has it has the tickets;
 * whoever loses it has lost them. The server keeps a keyed hash of it.
 */

import { browser } from "./kept.js";

const KEPT_AS = "holdfast.fingerprint";
const BYTES = 20;

/** Random bytes in base64url. @returns {string} */
export function randomText(bytes = BYTES) {
  const drawn = crypto.getRandomValues(new Uint8Array(bytes));
  return btoa(String.fromCharCode(...drawn)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** This buyer's fingerprint. @returns {string} */
export function fingerprint() {
  const kept = browser.get(KEPT_AS);
  if (kept !== null && /^[\x21-\x7e]{8,128}$/.test(kept)) return kept;
  const made = randomText();
  browser.set(KEPT_AS, made);
  return made;
}

/** Whether the browser will still know this buyer tomorrow. */
export const isLasting = () => browser.lasting;

/** The header by which the server knows this buyer. */
export const asBuyer = () => ({ "X-Buyer-Fingerprint": fingerprint() });
