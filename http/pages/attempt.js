/**
 * One thing that a buyer wants, asked for until it is known what became of it. The key is made with the first click and
 * kept over a reload, so that neither a double click nor a lost answer does anything twice.
 */

import { Refused, call } from "./api.js";
import { asBuyer, randomText } from "./buyer.js";
import { tab } from "./kept.js";
import { Backoff, pause } from "./waiting.js";

/** Milliseconds after which a reload does not take up an attempt again: nobody waits for it any more. */
const AGE_MS_MAX = 300_000;

/** Refusals that pass by themselves, after which the same is asked again. */
const PASSING = new Set(["not_ready", "overloaded", "outcome_unknown", "request_timeout", "unreadable_answer"]);

/** Milliseconds before the opening at which an early click waits for it, instead of being told to come back. */
const EARLY_MS_MAX = 3_000;

/** Whether the same is worth asking again; what the server refused for good is not. */
function passes(error) {
  if (!(error instanceof Refused) || error.status >= 500) return true;
  return PASSING.has(error.code) || (error.code === "not_yet_open" && error.problem.retry_after_ms <= EARLY_MS_MAX);
}

/** @typedef {{method: string, path: string, body?: any}} Call */
/** @typedef {Call & {key: string, at: number}} Wanted */

export class Attempt {
  #given = new AbortController();

  /**
   * @param {string} name under which it is kept: there is one at a time of each
   * @param {(error: Error) => void} onTrouble it takes longer, and why
   */
  constructor(name, onTrouble) {
    this.name = `holdfast.attempt.${name}`;
    this.onTrouble = onTrouble;
  }

  /** What a reload has interrupted. @returns {Wanted | null} */
  static interrupted(name) {
    const kept = tab.get(`holdfast.attempt.${name}`);
    if (kept === null) return null;
    const wanted = JSON.parse(kept);
    return Date.now() - wanted.at < AGE_MS_MAX ? wanted : null;
  }

  /**
   * Asks until there is an answer.
   *
   * @param {Call | Wanted} wanted a new one, or one that was interrupted, which keeps its key
   * @returns {Promise<{status: number, body: any, sentAt: number} | null>} null when it was given up
   * @throws {Refused} for good
   */
  async run(wanted) {
    const kept = { key: randomText(), at: Date.now(), ...wanted };
    tab.set(this.name, JSON.stringify(kept));
    const { method, path, body, key } = kept;
    const backoff = new Backoff();
    const signal = this.#given.signal;
    while (!signal.aborted) {
      try {
        const answer = await call(method, path, { body, headers: { "Idempotency-Key": key, ...asBuyer() }, signal });
        tab.drop(this.name);
        return answer;
      } catch (error) {
        if (signal.aborted) break;
        if (!passes(error)) {
          tab.drop(this.name);
          throw error;
        }
        this.onTrouble(error);
        const after = error instanceof Refused ? (error.problem.retry_after_ms ?? 0) : 0;
        // To the millisecond where the server says one, or another buyer is there first.
        await pause(error.code === "not_yet_open" ? after : Math.max(after, backoff.next()), signal);
      }
    }
    tab.drop(this.name);
    return null;
  }

  /** Asks no more. What was sent already may still be carried out. */
  giveUp() {
    this.#given.abort();
  }
}
