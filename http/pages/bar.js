/** A capacity as a bar: what is sold, what is held for now, and the ground for what is free. */

import { h } from "./dom.js";

/** @returns {{element: any, update: (counts: {capacity: number, reserved: number, purchased: number}) => void}} */
export function bar() {
  const sold = h("span", { class: "sold" });
  const held = h("span", { class: "held" });
  return {
    element: h("span", { class: "bar", "aria-hidden": "true" }, sold, held),
    update({ capacity, reserved, purchased }) {
      const part = (units) => `${capacity > 0 ? ((units / capacity) * 100).toFixed(2) : 0}%`;
      sold.style.width = part(purchased);
      held.style.width = part(reserved);
    },
  };
}
