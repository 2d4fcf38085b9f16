/** One sale as it sells: its stock, its rates, what was refused, and the last transitions. */

import { bar } from "./bar.js";
import { Chart } from "./chart.js";
import { heardTime, serverNow } from "./clock.js";
import { byId, h, framed, setAttribute, setText, show } from "./dom.js";
import { Feed } from "./feed.js";
import { count, duration, moment, plural } from "./format.js";
import { Live } from "./live.js";
import { Refusals } from "./refusals.js";
import { STATE_WORDS, itemName, stateOf } from "./sale-state.js";
import { token } from "./session.js";
import { Tally } from "./tally.js";

/** Seconds that the charts look back. */
const SPAN = 120;

/** Milliseconds that a transition takes to get here: a second is drawn when all of it has come. */
const LATE_MS = 500;

const RATES = [
  { key: "reserved", label: "Reserved", colour: "held" },
  { key: "purchased", label: "Purchased", colour: "kelp" },
  { key: "cancelled", label: "Cancelled", colour: "blue", dash: "4 3" },
  { key: "expired", label: "Expired", colour: "violet", dash: "1 3" },
];

export class SaleView {
  #live = /** @type {Live | null} */ (null);
  #state = "";
  #frozen = false;
  #gauges = new Map();
  #tally = new Tally(SPAN);
  #since = 0;

  /** @param {{onSale: (sale: any) => void, onState: (state: string) => void}} hears */
  constructor(hears) {
    this.hears = hears;
    this.sale = null;
    this.rates = new Chart(byId("rates"), { title: "Transitions", span: SPAN, none: "none" });
    this.refusals = new Refusals(byId("refusals"), SPAN);
    this.feed = new Feed(byId("feed"), byId("feed-said"));
    this.redraw = framed(() => this.#draw());
    byId("freeze").addEventListener("click", () => this.#freeze());
    setInterval(() => this.redraw(), 1000);
  }

  /** Shows a sale from now on. */
  open(id) {
    this.close();
    this.feed.clear();
    this.#tally.clear();
    this.#since = Math.floor(serverNow() / 1000);
    for (const each of this.#gauges.values()) each.element.remove();
    this.#gauges.clear();
    this.#state = "";
    this.refusals.follow(id);
    this.#live = new Live(
      id,
      {
        onCounts: (sale) => this.take(sale),
        onTransition: (transition) => this.#happened(transition),
        onState: (state) => {
          this.#state = state;
          this.hears.onState(state);
        },
      },
      token(),
    );
  }

  close() {
    this.#live?.stop();
    this.#live = null;
    this.refusals.stop();
    this.sale = null;
    show(byId("sale"), false);
  }

  /** The sale as it is now. */
  take(sale) {
    if (this.#live === null) return;
    this.sale = sale;
    this.hears.onSale(sale);
    this.redraw();
  }

  #happened(transition) {
    const instant = Date.parse(transition.at);
    heardTime(instant);
    if (transition.ticket) this.#tally.add(instant, transition.kind);
    this.feed.add(transition);
    this.redraw();
  }

  #freeze() {
    this.#frozen = !this.#frozen;
    setAttribute(byId("freeze"), "aria-pressed", this.#frozen);
    setText(byId("freeze"), this.#frozen ? "Resume" : "Pause");
    this.redraw();
  }

  #draw() {
    const { sale } = this;
    if (sale === null) return;
    show(byId("sale"), true);
    this.#drawHead(sale);
    this.#drawStock(sale);
    if (this.#frozen) return;
    this.feed.draw(sale);
    this.#drawRates();
    this.refusals.draw();
  }

  #drawHead(sale) {
    const state = stateOf(sale);
    setText(byId("sale-name"), sale.name);
    setText(byId("sale-state"), STATE_WORDS[state]);
    setAttribute(byId("sale-state"), "data-state", state);
    setText(byId("sale-id"), sale.id);
    setText(byId("sale-facts"), facts(sale));
    setAttribute(byId("shop-link"), "href", `shop/${sale.id}`);
    setText(byId("close"), state === "closed" ? "Open again" : "Close");
  }

  #drawStock(sale) {
    for (const name of ["available", "reserved", "purchased", "capacity"]) setText(byId(`total-${name}`), count(sale[name]));
    for (const item of sale.items) {
      let gauge = this.#gauges.get(item.sku);
      if (!gauge) {
        gauge = makeGauge(item.sku);
        this.#gauges.set(item.sku, gauge);
        byId("gauges").append(gauge.element);
      }
      const name = itemName(sale, item.sku);
      setText(gauge.name, name);
      setText(gauge.limit, item.max_per_buyer ? `at most ${count(item.max_per_buyer)} each` : "");
      const moving = item.in_transit > 0 ? `, ${count(item.in_transit)} in transit` : "";
      const words = `${count(item.available)} available, ${count(item.reserved)} held, ${count(item.purchased)} sold${moving} of ${count(item.capacity)}`;
      setText(gauge.numbers, words);
      gauge.bar.update(item);
      setAttribute(gauge.meter, "aria-label", name);
      setAttribute(gauge.meter, "aria-valuemax", Math.max(1, item.capacity));
      setAttribute(gauge.meter, "aria-valuenow", item.available);
      setAttribute(gauge.meter, "aria-valuetext", words);
    }
  }

  #drawRates() {
    this.rates.draw(RATES, (second, key) => this.#tally.at(second, key), Math.floor((serverNow() - LATE_MS) / 1000), this.#since);
    this.rates.say(this.#state === "polling" ? "The live stream cannot be had here: stock is read every two seconds, and transitions are not seen." : "");
  }
}

function makeGauge(sku) {
  const name = h("span", { class: "gauge-name" });
  const limit = h("span", { class: "small" });
  const numbers = h("span", { class: "small numbers" });
  const gauge = bar();
  const meter = h("div", { role: "meter", "aria-valuemin": 0, "aria-valuenow": 0 }, gauge.element);
  const element = h("li", {}, h("div", { class: "gauge-head" }, name, h("span", { class: "mono small" }, sku), limit, numbers), meter);
  return { element, name, limit, numbers, bar: gauge, meter };
}

function facts(sale) {
  const parts = [`hold ${duration(sale.hold_ms)}`];
  if (sale.max_per_buyer !== null) parts.push(`at most ${plural(sale.max_per_buyer, "unit")} per buyer`);
  if (sale.opens_at !== null) parts.push(`opens ${moment(sale.opens_at)}`);
  if (sale.closes_at !== null) parts.push(`${stateOf(sale) === "closed" ? "closed" : "closes"} ${moment(sale.closes_at)}`);
  if (sale.durability) parts.push(`payments ${sale.durability}`);
  if (sale.shards) parts.push(plural(sale.shards, "shard"));
  return parts.join(" · ");
}
