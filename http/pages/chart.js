/** A chart of what happens per second: lines over the last two minutes, drawn in SVG. */

import { h, setAttribute, setText, svg } from "./dom.js";
import { brief } from "./format.js";

const HEIGHT = 180;
const LEFT = 46;
const TOP = 12;
const BOTTOM = 24;
const RIGHT = 8;

/** @typedef {{key: string, label: string, colour: string, dash?: string}} Series */

export class Chart {
  #series = /** @type {Map<string, any>} */ (new Map());
  #pointed = /** @type {number | null} */ (null);
  #last = null;
  #width = 600;

  /**
   * @param {HTMLElement} figure is filled
   * @param {{title: string, span: number, none: string}} options `span` in seconds; what stands where nothing happened
   */
  constructor(figure, { title, span, none }) {
    this.span = span;
    this.title = title;
    this.none = none;
    this.legend = h("ul", { class: "legend" });
    this.when = h("span", { class: "small when" });
    this.said = h("p", { class: "small chart-said" });
    this.grid = svg("g", { class: "grid" });
    this.lines = svg("g");
    this.pointer = svg("line", { class: "pointer", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    this.drawing = svg("svg", { height: HEIGHT, role: "img", class: "chart" }, this.grid, this.lines, this.pointer);
    this.drawing.addEventListener("pointermove", (event) => this.#point(event));
    this.drawing.addEventListener("pointerleave", () => this.#point(null));
    // Drawn as wide as it is shown, so that letters keep their size.
    new ResizeObserver(([{ contentRect }]) => this.#resize(contentRect.width)).observe(this.drawing);
    figure.append(h("figcaption", { class: "card-head" }, h("h3", {}, title), this.when), this.legend, this.drawing, this.said);
  }

  /**
   * @param {Series[]} series in the order of the legend
   * @param {(second: number, key: string) => number} value
   * @param {number} now the second that is not over yet, Unix seconds
   * @param {number} since when it is known what happened, Unix seconds: before that there is no line, and not one at 0
   */
  draw(series, value, now, since) {
    this.#last = { series, value, now, since };
    const first = now - this.span;
    const from = Math.max(0, Math.min(this.span - 1, since - first));
    const columns = series.map(({ key }) => Array.from({ length: this.span }, (_, at) => value(first + at, key)));
    const top = ceiling(Math.max(1, ...columns.flat()));
    this.#drawGrid(top);
    const seen = new Set();
    series.forEach((each, at) => {
      seen.add(each.key);
      const parts = this.#part(each);
      setAttribute(parts.path, "d", this.#path(columns[at], top, from));
      const shown = this.#pointed === null ? mean(columns[at].slice(-3)) : columns[at][this.#pointed];
      setText(parts.number, brief(shown));
    });
    for (const [key, parts] of this.#series) {
      if (seen.has(key)) continue;
      parts.path.remove();
      parts.entry.remove();
      this.#series.delete(key);
    }
    setText(this.when, this.#pointed === null ? "per second, now" : `${this.span - this.#pointed} s ago`);
    this.#describe(series, columns);
  }

  #resize(width) {
    if (width === 0 || width === this.#width) return;
    this.#width = width;
    this.grid.removeAttribute("data-top");
    this.#redraw();
  }

  #redraw() {
    if (this.#last) this.draw(this.#last.series, this.#last.value, this.#last.now, this.#last.since);
  }

  /** Says beside the chart why it has nothing to show; an empty text takes that away. */
  say(words) {
    setText(this.said, words);
  }

  #part({ key, label, colour, dash }) {
    let parts = this.#series.get(key);
    if (!parts) {
      const number = h("strong");
      const swatch = svg("svg", { viewBox: "0 0 18 8", class: "swatch", "aria-hidden": "true" }, svg("line", { x1: 1, x2: 17, y1: 4, y2: 4, class: `stroke-${colour}`, "stroke-dasharray": dash }));
      const entry = h("li", {}, swatch, h("span", {}, label), number);
      parts = { number, entry, path: svg("path", { class: `series stroke-${colour}`, "stroke-dasharray": dash }) };
      this.lines.append(parts.path);
      this.legend.append(entry);
      this.#series.set(key, parts);
    }
    return parts;
  }

  #drawGrid(top) {
    if (this.grid.dataset.top === String(top)) return;
    this.grid.dataset.top = String(top);
    const rows = [0, 0.5, 1].flatMap((part) => {
      const at = y(part * top, top);
      return [
        svg("line", { x1: LEFT, x2: this.#width - RIGHT, y1: at, y2: at }),
        svg("text", { x: LEFT - 8, y: at + 4, "text-anchor": "end" }, brief(part * top)),
      ];
    });
    const times = [this.span, this.span / 2, 0].map((ago, at) =>
      svg("text", { x: [LEFT, (LEFT + this.#width - RIGHT) / 2, this.#width - RIGHT][at], y: HEIGHT - 6, "text-anchor": ["start", "middle", "end"][at] }, ago === 0 ? "now" : `${ago / 60} min ago`),
    );
    this.grid.replaceChildren(...rows, ...times);
  }

  /** For those who cannot see it, in one sentence; not more often than one can listen to. */
  #describe(series, columns) {
    const now = Math.floor(Date.now() / 5000);
    if (this.describedAt === now && this.drawing.hasAttribute("aria-label")) return;
    this.describedAt = now;
    const parts = series.map(({ label }, at) => `${label} ${brief(mean(columns[at].slice(-3)))}, at most ${brief(Math.max(0, ...columns[at]))}`);
    setAttribute(this.drawing, "aria-label", `${this.title} per second: ${parts.length > 0 ? parts.join("; ") : this.none}`);
  }

  #point(event) {
    if (event === null) {
      this.#pointed = null;
    } else {
      const box = this.drawing.getBoundingClientRect();
      const at = Math.round(((event.clientX - box.left - LEFT) / (this.#width - LEFT - RIGHT)) * (this.span - 1));
      this.#pointed = at >= 0 && at < this.span ? at : null;
    }
    setAttribute(this.pointer, "visibility", this.#pointed === null ? "hidden" : "visible");
    if (this.#pointed !== null) {
      const at = this.#x(this.#pointed).toFixed(1);
      setAttribute(this.pointer, "x1", at);
      setAttribute(this.pointer, "x2", at);
    }
    this.#redraw();
  }

  /** From left to right, by the number of the second. */
  #x(at) {
    return LEFT + (at / (this.span - 1)) * (this.#width - LEFT - RIGHT);
  }

  #path(values, top, from) {
    const points = values.slice(from).map((value, at) => `${this.#x(from + at).toFixed(1)} ${y(value, top).toFixed(1)}`);
    return `M${points.join("L")}`;
  }
}

const y = (value, top) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP);
const mean = (values) => values.reduce((sum, each) => sum + each, 0) / Math.max(1, values.length);

/** The next number that reads well: 1, 2, 5, 10, 20, 50 ... */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return ([1, 2, 5, 10].find((each) => each * power >= value) ?? 10) * power;
}
