/** The last transitions, the newest on top. In a stampede there are thousands a second: rows are made for what is seen. */

import { h, setText } from "./dom.js";
import { clockTime, count } from "./format.js";
import { linesText } from "./sale-state.js";

/** Rows that are kept. */
const ROWS_MAX = 40;

/** Milliseconds between two drawings: faster, nobody could read. */
const DRAW_MS = 300;

const WORDS = { reserved: "reserved", purchased: "purchased", cancelled: "cancelled", expired: "expired", sale: "sale changed", transfer: "moved" };

export class Feed {
  #waiting = [];
  #heard = 0;
  #drawnAt = 0;

  /** @param {HTMLElement} body of the table @param {HTMLElement} said */
  constructor(body, said) {
    this.body = body;
    this.said = said;
  }

  clear() {
    this.#waiting = [];
    this.#heard = 0;
    this.body.replaceChildren();
    setText(this.said, "Nothing since you opened this sale");
  }

  /** A transition came. */
  add(transition) {
    this.#heard += 1;
    this.#waiting.push(transition);
    if (this.#waiting.length > ROWS_MAX * 4) this.#waiting = this.#waiting.slice(-ROWS_MAX);
  }

  /** Shows what has come since. */
  draw(sale) {
    const now = performance.now();
    if (this.#waiting.length === 0 || now - this.#drawnAt < DRAW_MS) return;
    this.#drawnAt = now;
    const rows = this.#waiting.slice(-ROWS_MAX).reverse().map((each) => row(sale, each));
    this.#waiting = [];
    this.body.prepend(...rows);
    while (this.body.children.length > ROWS_MAX) this.body.lastElementChild.remove();
    setText(this.said, `${count(this.#heard)} since you opened this sale`);
  }
}

function row(sale, transition) {
  const { kind } = transition;
  return h(
    "tr", {},
    h("td", { class: "mono" }, clockTime(transition.at)),
    h("td", {}, h("span", { class: "kind", "data-kind": kind }, WORDS[kind] ?? kind)),
    h("td", {}, transition.lines ? linesText(sale, transition.lines) : ""),
    h("td", { class: "mono" }, transition.ticket ?? transition.slot ?? ""),
    h("td", {}, transition.reference ?? ""),
  );
}
