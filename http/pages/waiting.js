/** Waiting: for a while, longer each time, and no longer than until the network is back. */

const FIRST_MS = 400;
const LONGEST_MS = 10_000;

/** Resolves after so many milliseconds, or at once when the signal is given or the network comes back. */
export function pause(ms, signal) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      removeEventListener("online", end);
      signal?.removeEventListener("abort", end);
      resolve(undefined);
    };
    const timer = setTimeout(end, ms);
    addEventListener("online", end);
    signal?.addEventListener("abort", end);
    if (signal?.aborted) end();
  });
}

/** How long to wait before the next attempt, milliseconds: doubled each time, and never the same for all who wait. */
export class Backoff {
  #failures = 0;

  next() {
    const whole = Math.min(LONGEST_MS, FIRST_MS * 2 ** this.#failures++);
    return whole / 2 + (Math.random() * whole) / 2;
  }

  reset() {
    this.#failures = 0;
  }
}
