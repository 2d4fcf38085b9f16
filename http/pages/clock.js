/**
 * The server's clock, as far as its answers tell it. The reader's clock may be wrong by hours; what a page counts down
 * goes by this one.
 *
 * Each answer bounds it: what it says lies between the sending of the question and its own coming. The header `Date` has
 * whole seconds, and leaves one more open. All answers together leave little.
 */

/** How far the server's clock is ahead of performance.now(), milliseconds: at least, and at most. */
let least = Number.NEGATIVE_INFINITY;
let most = Number.POSITIVE_INFINITY;

/**
 * The server has said how late it is.
 *
 * @param {string | number | null} said an instant in Unix milliseconds, or a header `Date`
 * @param {number} [sentAt] when it was asked, by performance.now(); what comes by itself was said some time ago
 */
export function heardTime(said, sentAt = Number.NEGATIVE_INFINITY) {
  const instant = typeof said === "number" ? said : Date.parse(said ?? "");
  if (Number.isNaN(instant)) return;
  const low = instant - performance.now();
  const high = instant + (typeof said === "number" ? 0 : 1000) - sentAt;
  // A machine that slept, or a clock that was set: what was known before is no longer true.
  if (low > most) most = Number.POSITIVE_INFINITY;
  if (high < least) least = Number.NEGATIVE_INFINITY;
  least = Math.max(least, low);
  most = Math.min(most, high);
}

/** What the server's clock shows now, Unix milliseconds; the reader's own before anything was heard. */
export function serverNow() {
  if (!Number.isFinite(least)) return Date.now();
  return performance.now() + (Number.isFinite(most) ? (least + most) / 2 : least);
}
