/** How much happened in each second, by kind, for as long as a chart looks back. */

export class Tally {
  #seconds = new Map();

  /** @param {number} span seconds that are kept */
  constructor(span) {
    this.span = span;
  }

  /** So much of a kind happened at this instant, Unix milliseconds. */
  add(instant, kind, number = 1) {
    const second = Math.floor(instant / 1000);
    let kinds = this.#seconds.get(second);
    if (!kinds) {
      kinds = new Map();
      this.#seconds.set(second, kinds);
      if (this.#seconds.size > this.span * 2) this.#forget(second);
    }
    kinds.set(kind, (kinds.get(kind) ?? 0) + number);
  }

  /** How much of a kind happened in a second. */
  at(second, kind) {
    return this.#seconds.get(second)?.get(kind) ?? 0;
  }

  /** How much of a kind happened in each of the last whole seconds, per second. */
  rate(kind, now, seconds = 3) {
    let sum = 0;
    for (let back = 1; back <= seconds; back++) sum += this.at(now - back, kind);
    return sum / seconds;
  }

  /** The kinds that happened within the span. @returns {Set<string>} */
  kinds(now) {
    const found = new Set();
    for (const [second, kinds] of this.#seconds) if (second > now - this.span) for (const kind of kinds.keys()) found.add(kind);
    return found;
  }

  clear() {
    this.#seconds.clear();
  }

  #forget(newest) {
    for (const second of this.#seconds.keys()) if (second <= newest - this.span) this.#seconds.delete(second);
  }
}
