/** What was refused, second by second, from the counters in the server's metrics. */

import { Chart } from "./chart.js";
import { outcomes } from "./metrics.js";
import { Tally } from "./tally.js";
import { pause } from "./waiting.js";

/** Milliseconds between two looks, and when there is nothing to look at. */
const EVERY_MS = 1_000;
const ABSENT_MS = 10_000;

/** Milliseconds until a second has been counted: one look, and its answer. */
const LATE_MS = 1_500;

const LABELS = {
  sold_out: ["Sold out", "red"],
  all_held: ["All held", "held"],
  limit_reached: ["Limit reached", "violet"],
  not_yet_open: ["Not yet open", "blue"],
  closed: ["Closed", "soft"],
  ticket_expired: ["Too late to pay", "violet", "4 3"],
  payment_declined: ["Payment declined", "blue", "4 3"],
  overloaded: ["Overloaded", "red", "4 3"],
  not_ready: ["Not ready", "red", "1 3"],
  outcome_unknown: ["Outcome unknown", "held", "4 3"],
};
const OTHER = ["Other", "soft", "4 3"];

export class Refusals {
  #tally;
  #before = new Map();
  #stopped = new AbortController();
  #present = true;
  #since = 0;
  #lookedAt = 0;

  /** @param {HTMLElement} figure @param {number} span seconds */
  constructor(figure, span) {
    this.chart = new Chart(figure, { title: "Refusals", span, none: "none" });
    this.#tally = new Tally(span);
    this.span = span;
  }

  /** Counts those of this sale from now on. */
  follow(sale) {
    this.stop();
    this.#stopped = new AbortController();
    this.#before.clear();
    this.#tally.clear();
    this.#since = Math.floor(Date.now() / 1000);
    this.#watch(sale, this.#stopped.signal);
  }

  stop() {
    this.#stopped.abort();
  }

  /** Draws what was counted, by the reader's clock. */
  draw() {
    const now = Math.floor((Date.now() - LATE_MS) / 1000);
    const kinds = [...this.#tally.kinds(now)];
    const known = Object.keys(LABELS).filter((each) => kinds.includes(each));
    const others = kinds.filter((each) => !(each in LABELS));
    const series = known.map((key) => ({ key, label: LABELS[key][0], colour: LABELS[key][1], dash: LABELS[key][2] }));
    if (others.length > 0) series.push({ key: "other", label: OTHER[0], colour: OTHER[1], dash: OTHER[2] });
    const value = (second, key) => (key === "other" ? others.reduce((sum, each) => sum + this.#tally.at(second, each), 0) : this.#tally.at(second, key));
    this.chart.draw(series, value, now, this.#since);
    this.chart.say(this.#present ? (series.length === 0 ? "Nothing was refused in the last two minutes." : "") : "This server has no metrics to count refusals from.");
  }

  async #watch(sale, signal) {
    while (!signal.aborted) {
      if (!document.hidden) {
        try {
          const counters = await outcomes(signal);
          this.#present = counters !== null;
          if (counters !== null) this.#take(counters.filter((each) => each.sale === sale && each.outcome !== "ok"));
        } catch {
          // No answer: the next look counts what was missed.
        }
      }
      await pause(this.#present ? EVERY_MS : ABSENT_MS, signal);
    }
  }

  /** Counts what is more than at the last look, spread over the time since. */
  #take(counters) {
    const now = Date.now();
    const first = this.#before.size === 0;
    const began = first ? now : Math.max(this.#lookedAt, now - this.span * 1000);
    this.#lookedAt = now;
    for (const { call, outcome, value } of counters) {
      const key = `${call} ${outcome}`;
      const before = this.#before.get(key) ?? 0;
      this.#before.set(key, value);
      // A counter that fell began anew, with its process.
      const more = value < before ? value : value - before;
      if (first || more === 0) continue;
      for (let from = began; from < now; from = (Math.floor(from / 1000) + 1) * 1000) {
        const until = Math.min(now, (Math.floor(from / 1000) + 1) * 1000);
        this.#tally.add(from, outcome, (more * (until - from)) / (now - began));
      }
    }
    // So that the next look is not the first, even where nothing was ever refused.
    if (this.#before.size === 0) this.#before.set("", 0);
  }
}
