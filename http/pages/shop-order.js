/** The form in which a buyer chooses: an item a row, with what is left of it, and one button. */

import { bar } from "./bar.js";
import { h, setAttribute, setText, show } from "./dom.js";
import { count } from "./format.js";
import { itemName, mayComeBack } from "./sale-state.js";

/** Units on one line that the server takes. */
const QUANTITY_MAX = 1_000_000;

export class OrderForm {
  #rows = new Map();

  /** @param {HTMLElement} list @param {() => void} onChange */
  constructor(list, onChange) {
    this.list = list;
    this.onChange = onChange;
  }

  /**
   * Shows what is left.
   *
   * @param {any} sale
   * @param {(item: any) => number} most that the buyer may take of an item
   */
  update(sale, most) {
    const single = sale.items.length === 1;
    for (const item of sale.items) {
      let row = this.#rows.get(item.sku);
      if (!row) {
        row = this.#row(item, single);
        this.#rows.set(item.sku, row);
        this.list.append(row.element);
      }
      setText(row.name, itemName(sale, item.sku));
      show(row.limit, Boolean(item.max_per_buyer));
      if (item.max_per_buyer) setText(row.limit, `at most ${count(item.max_per_buyer)} per buyer`);
      setText(row.left, leftWords(item));
      row.element.dataset.left = item.available > 0 ? "some" : mayComeBack(item) > 0 ? "held" : "none";
      row.gauge.update(item);
      row.most = Math.max(0, Math.min(QUANTITY_MAX, most(item)));
      setAttribute(row.input, "max", Math.max(row.least, row.most));
      row.steps();
    }
  }

  /** What is chosen: lines of what is not 0. @returns {{sku: string, quantity: number}[]} */
  lines() {
    return [...this.#rows].map(([sku, row]) => ({ sku, quantity: row.value() })).filter((line) => line.quantity > 0);
  }

  /** Chooses at most so many of an item. */
  lower(sku, quantity) {
    const row = this.#rows.get(sku);
    if (row && quantity > 0 && row.value() > quantity) row.set(quantity);
  }

  /** Nothing is chosen any more; one, where there is nothing to choose between. */
  clear() {
    for (const row of this.#rows.values()) row.set(row.first);
  }

  /** While something is under way nothing can be changed. */
  freeze(frozen) {
    for (const row of this.#rows.values()) {
      row.frozen = frozen;
      row.input.readOnly = frozen;
      row.steps();
    }
  }

  #row(item, single) {
    const id = `quantity-${item.sku}`;
    const first = single ? 1 : 0;
    const least = single ? 1 : 0;
    const name = h("label", { class: "item-name", for: id });
    const limit = h("span", { class: "small" });
    const left = h("span", { class: "left", id: `left-${item.sku}` });
    const input = h("input", {
      id, type: "number", inputmode: "numeric", min: least, step: 1, value: first,
      "aria-describedby": `left-${item.sku}`, autocomplete: "off",
    });
    const fewer = h("button", { type: "button", class: "step", onclick: () => step(-1) }, "−");
    const more = h("button", { type: "button", class: "step", onclick: () => step(1) }, "+");
    const gauge = bar();
    const element = h(
      "li", { class: "item" },
      h("div", { class: "item-what" }, name, limit),
      h("div", { class: "item-left" }, left, gauge.element),
      h("div", { class: "stepper" }, fewer, input, more),
    );
    const row = {
      element, name, limit, left, input, gauge, least, first, most: QUANTITY_MAX, frozen: false,
      value: () => {
        const value = Number(input.value);
        return Number.isSafeInteger(value) && value > 0 ? Math.min(value, QUANTITY_MAX) : 0;
      },
      set: (value) => {
        input.value = String(value);
        row.steps();
        this.onChange();
      },
      steps: () => {
        fewer.disabled = row.frozen || row.value() <= least;
        more.disabled = row.frozen || row.value() >= row.most;
        setAttribute(fewer, "aria-label", `Fewer: ${name.textContent}`);
        setAttribute(more, "aria-label", `More: ${name.textContent}`);
      },
    };
    const step = (by) => row.set(Math.max(least, Math.min(QUANTITY_MAX, row.value() + by)));
    input.addEventListener("input", () => {
      row.steps();
      this.onChange();
    });
    input.addEventListener("change", () => row.set(Math.max(least, row.value())));
    return row;
  }
}

function leftWords(item) {
  if (item.available > 0) return `${count(item.available)} left`;
  return mayComeBack(item) > 0 ? `all held (${count(mayComeBack(item))})` : "sold out";
}
