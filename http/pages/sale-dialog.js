/** The dialog in which a sale is made or changed. */

import { Refused, call } from "./api.js";
import { byId, h, setText, show } from "./dom.js";
import { clearMistakes, field, input, instantInput, instantOf, numberInput, numberOf, showMistakes } from "./fields.js";
import { count } from "./format.js";
import { asOperator } from "./session.js";

const UNITS_MS = { seconds: 1000, minutes: 60_000, hours: 3_600_000 };
const HOLD_MS_DEFAULT = 900_000;

/**
 * Opens the dialog.
 *
 * @param {any | null} sale to change; null makes a new one
 * @param {(sale: any) => void} onDone with the sale as it is then
 */
export function openSaleDialog(sale, onDone) {
  new SaleDialog(sale, onDone).open();
}

class SaleDialog {
  #rows = [];
  #busy = false;

  constructor(sale, onDone) {
    this.sale = sale;
    this.onDone = onDone;
    this.dialog = byId("sale-dialog");
    this.name = input({ value: sale?.name ?? "", required: true });
    this.id = input({ spellcheck: "false", autocapitalize: "none" });
    const hold = split(sale?.hold_ms ?? HOLD_MS_DEFAULT);
    this.hold = numberInput({ value: hold.number });
    this.unit = h("select", { "aria-label": "Unit of the hold time" }, ...Object.keys(UNITS_MS).map((name) => h("option", { value: name, selected: name === hold.unit }, name)));
    this.limit = numberInput({ value: sale?.max_per_buyer ?? "", placeholder: "no limit" });
    this.opens = instantInput(sale?.opens_at ?? null);
    this.closes = instantInput(sale?.closes_at ?? null);
    this.items = h("div", { class: "rows" });
    this.more = h("button", { type: "button", onclick: () => this.#addRow(null, true) }, "Add another kind");
    this.general = h("p", { class: "mistake general", role: "alert" });
    this.submit = h("button", { class: "primary", type: "submit" }, sale ? "Save" : "Create");
    for (const item of sale?.items ?? [null]) this.#addRow(item);
  }

  open() {
    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    const holdField = field("Hold time", this.hold, this.sale ? "For tickets from now on" : "How long a buyer has to pay");
    const withUnit = h("div", { class: "with-unit" });
    this.hold.replaceWith(withUnit);
    withUnit.append(this.hold, this.unit);
    const form = h(
      "form", { novalidate: true, onsubmit: (event) => this.#send(event) },
      h("h2", { id: "sale-dialog-title" }, this.sale ? `Change ${this.sale.name}` : "New sale"),
      h("div", { class: "pair" }, field("Name", this.name, "What buyers read"), this.sale ? null : field("Id", this.id, "For addresses: a-z, 0-9, -; made when empty")),
      h("fieldset", {}, h("legend", {}, "What is on sale"), this.items, this.more),
      h("div", { class: "pair" }, holdField, field("Limit", this.limit, "Units of all kinds that one buyer may have")),
      h("div", { class: "pair" }, field("Opens", this.opens, `Empty: at once. ${zone}`), field("Closes", this.closes, `Empty: stays open. ${zone}`)),
      this.general,
      h("div", { class: "ends" }, h("button", { type: "button", onclick: () => this.dialog.close() }, "Cancel"), this.submit),
    );
    this.form = form;
    this.dialog.replaceChildren(form);
    this.dialog.showModal();
    this.name.focus();
  }

  #addRow(item, focus = false) {
    const row = {
      item,
      name: input({ value: item && !isUnnamed(this.sale, item) ? item.name : "" }),
      sku: input({ value: item?.sku ?? "", readonly: Boolean(item), spellcheck: "false", autocapitalize: "none" }),
      capacity: numberInput({ value: item?.capacity ?? "" }),
      limit: numberInput({ value: item?.max_per_buyer ?? "", placeholder: "no limit" }),
    };
    const inUse = item ? item.reserved + item.purchased : 0;
    const [name, sku, capacity, limit] = [
      field("Item", row.name), field("Its id", row.sku),
      field("Units", row.capacity, inUse > 0 ? `${count(inUse)} held or sold` : ""), field("Per buyer", row.limit),
    ];
    let spelled = Boolean(item);
    row.sku.addEventListener("input", () => (spelled = true));
    row.name.addEventListener("input", () => {
      if (!spelled) row.sku.value = slug(row.name.value);
    });
    const remove = item ? null : h("button", { type: "button", class: "quiet remove", "aria-label": "Take this item away", onclick: () => this.#removeRow(row) }, "×");
    Object.assign(row, { wide: [name, sku, limit], remove, element: h("div", { class: "row" }, name, sku, capacity, limit, remove) });
    this.#rows.push(row);
    this.items.append(row.element);
    this.#arrange();
    if (focus) (this.#rows.length === 2 && !this.#rows[0].name.value ? this.#rows[0] : row).name.focus();
  }

  #removeRow(row) {
    this.#rows = this.#rows.filter((each) => each !== row);
    row.element.remove();
    this.#arrange();
    this.more.focus();
  }

  /** A sale of one kind of unit needs no name and no id for it. */
  #arrange() {
    const plain = this.#isPlain();
    for (const row of this.#rows) {
      for (const each of row.wide) show(each, !plain);
      if (row.remove) show(row.remove, !plain && this.#rows.length > 1);
    }
    this.items.dataset.plain = String(plain);
  }

  #isPlain() {
    return this.#rows.length === 1 && (this.sale === null || isUnnamed(this.sale, this.sale.items[0]));
  }

  /** All that the form says, as a body. */
  #body() {
    const hold = numberOf(this.hold);
    const body = {
      id: this.id.value.trim() || undefined,
      name: this.name.value.trim(),
      hold_ms: typeof hold === "number" ? Math.round(hold * UNITS_MS[this.unit.value]) : hold,
      max_per_buyer: numberOf(this.limit) ?? null,
      opens_at: instantOf(this.opens),
      closes_at: instantOf(this.closes),
    };
    if (this.#isPlain()) return { ...body, capacity: numberOf(this.#rows[0].capacity) };
    const items = this.#rows.map((row) => ({
      sku: row.sku.value.trim(),
      name: row.name.value.trim() || undefined,
      capacity: numberOf(row.capacity),
      max_per_buyer: numberOf(row.limit) ?? null,
    }));
    return { ...body, items };
  }

  /** Which input each part of a body came from, by JSON pointer. */
  #inputs(body) {
    const inputs = new Map([
      ["/name", this.name],
      ["/id", this.id],
      ["/hold_ms", this.hold],
      ["/max_per_buyer", this.limit],
      ["/opens_at", this.opens],
      ["/closes_at", this.closes],
      ["/capacity", this.#rows[0].capacity],
    ]);
    (body.items ?? []).forEach((item, at) => {
      const row = this.#rows.find((each) => each.sku.value.trim() === item.sku);
      for (const name of ["sku", "name", "capacity"]) inputs.set(`/items/${at}/${name}`, row[name]);
      inputs.set(`/items/${at}/max_per_buyer`, row.limit);
    });
    return inputs;
  }

  async #send(event) {
    event.preventDefault();
    if (this.#busy) return;
    this.#busy = true;
    this.submit.setAttribute("aria-disabled", "true");
    clearMistakes(this.form);
    const body = this.sale ? changed(this.sale, this.#body()) : this.#body();
    const inputs = this.#inputs(body);
    try {
      const answer = this.sale
        ? await call("PATCH", `/sales/${this.sale.id}`, { body, type: "application/merge-patch+json", headers: asOperator() })
        : await call("POST", "/sales", { body, headers: asOperator() });
      this.dialog.close();
      this.onDone(answer.body);
    } catch (error) {
      this.#refused(error, inputs);
    } finally {
      this.#busy = false;
      this.submit.removeAttribute("aria-disabled");
    }
  }

  #refused(error, inputs) {
    if (!(error instanceof Refused)) setText(this.general, "The server did not answer. Look whether it was done before you try again.");
    else if (error.problem.errors) showMistakes(this.general, inputs, error.problem.errors);
    else if (error.code === "sale_exists") showMistakes(this.general, inputs, [{ pointer: "/id", detail: "another sale has this id" }]);
    else if (error.code === "capacity_in_use") {
      const at = this.#rows.findIndex((row) => row.sku.value === error.problem.sku);
      const input = this.#rows[Math.max(0, at)].capacity;
      showMistakes(this.general, new Map([["/", input]]), [{ pointer: "/", detail: `${count(error.problem.in_use)} are held or sold` }]);
    } else setText(this.general, error.message);
  }
}

const isUnnamed = (sale, item) => sale.items.length === 1 && item.sku === "general" && item.name === "general";

/** What a merge patch has to say: only what is another than before. */
function changed(sale, body) {
  const patch = {};
  for (const name of ["name", "hold_ms", "max_per_buyer", "capacity"]) if (body[name] !== undefined && body[name] !== sale[name]) patch[name] = body[name];
  for (const name of ["opens_at", "closes_at"]) if (second(body[name]) !== second(sale[name])) patch[name] = body[name];
  const items = (body.items ?? []).filter((item) => {
    const before = sale.items.find((each) => each.sku === item.sku);
    return !before || before.capacity !== item.capacity || (item.name !== undefined && before.name !== item.name) || (before.max_per_buyer ?? null) !== item.max_per_buyer;
  });
  if (items.length > 0) patch.items = items;
  return patch;
}

/** An instant without its milliseconds, which the field does not show. */
const second = (instant) => (instant === null ? null : Math.floor(Date.parse(instant) / 1000));

function split(ms) {
  const unit = ["hours", "minutes", "seconds"].find((name) => ms % UNITS_MS[name] === 0) ?? "seconds";
  return { unit, number: ms / UNITS_MS[unit] };
}

const slug = (text) =>
  text.toLowerCase().replaceAll("ä", "ae").replaceAll("ö", "oe").replaceAll("ü", "ue").replaceAll("ß", "ss").normalize("NFD")
    .replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-+|-+$/g, "").slice(0, 64);
