/** The list of sales: each with its state, and how much of it is left. */

import { call } from "./api.js";
import { bar } from "./bar.js";
import { byId, h, setAttribute, setText, show } from "./dom.js";
import { brief } from "./format.js";
import { STATE_WORDS, stateOf } from "./sale-state.js";
import { asOperator } from "./session.js";

const PAGE = 200;

/** Sales from which on a field to find one is of use. */
const FILTER_FROM = 8;

export class SalesList {
  #sales = new Map();
  #rows = new Map();
  #next = /** @type {string | null} */ (null);
  #selected = /** @type {string | null} */ (null);

  /** @param {(id: string) => void} onChoose */
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.list = byId("sales");
    byId("filter").addEventListener("input", () => this.draw());
    byId("more-sales").addEventListener("click", () => this.load(true));
  }

  get sales() {
    return [...this.#sales.values()];
  }

  clear() {
    this.#sales.clear();
    this.#rows.clear();
    this.list.replaceChildren();
  }

  /**
   * Reads the sales again; with `more`, those after the ones that are listed, too.
   *
   * @throws {import("./api.js").Refused | import("./api.js").Lost}
   */
  async load(more = false) {
    let wanted = this.#sales.size + (more ? PAGE : 0);
    let cursor = null;
    const found = new Map();
    do {
      const { body } = await call("GET", `/sales?limit=${PAGE}${cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`}`, { headers: asOperator() });
      for (const sale of body.items) found.set(sale.id, sale);
      cursor = body.next;
      wanted -= PAGE;
    } while (cursor !== null && wanted > 0);
    this.#next = cursor;
    this.#sales = found;
    this.draw();
  }

  /** A sale as it is now: made, changed, or heard of on its stream. */
  take(sale) {
    this.#sales.set(sale.id, sale);
    this.draw();
  }

  select(id) {
    this.#selected = id;
    this.draw();
  }

  draw() {
    const sales = this.sales.sort((one, other) => (one.id < other.id ? -1 : 1));
    const wanted = byId("filter").value.trim().toLowerCase();
    show(byId("filter"), sales.length >= FILTER_FROM);
    show(byId("more-sales"), this.#next !== null);
    for (const [id, row] of this.#rows) {
      if (this.#sales.has(id)) continue;
      row.element.remove();
      this.#rows.delete(id);
    }
    sales.forEach((sale, at) => {
      const row = this.#rows.get(sale.id) ?? this.#add(sale.id);
      setText(row.name, sale.name);
      const state = stateOf(sale);
      setAttribute(row.state, "data-state", state);
      setText(row.state, STATE_WORDS[state]);
      setText(row.left, sale.ready === false ? "" : `${brief(sale.available)} of ${brief(sale.capacity)} left`);
      row.gauge.update(sale);
      show(row.element, `${sale.id} ${sale.name}`.toLowerCase().includes(wanted));
      if (sale.id === this.#selected) setAttribute(row.link, "aria-current", "true");
      else row.link.removeAttribute("aria-current");
      if (this.list.children[at] !== row.element) this.list.insertBefore(row.element, this.list.children[at] ?? null);
    });
  }

  #add(id) {
    const name = h("span", { class: "sale-name" });
    const state = h("span", { class: "pill" });
    const left = h("span", { class: "small" });
    const gauge = bar();
    const choose = (event) => {
      // A new tab, if that is what is asked for.
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      this.onChoose(id);
    };
    const link = h("a", { href: `#sale=${encodeURIComponent(id)}`, onclick: choose }, name, h("span", { class: "sale-line" }, state, left), gauge.element);
    const row = { element: h("li", {}, link), link, name, state, left, gauge };
    this.#rows.set(id, row);
    return row;
  }
}
