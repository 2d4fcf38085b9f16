/** The two small dialogs: more units, and the end of a sale. */

import { Refused, call } from "./api.js";
import { serverNow } from "./clock.js";
import { byId, h, setText } from "./dom.js";
import { clearMistakes, field, numberInput, numberOf, showMistakes } from "./fields.js";
import { count, plural } from "./format.js";
import { itemName, stateOf } from "./sale-state.js";
import { asOperator } from "./session.js";

/** Changes a sale. @returns {Promise<any>} the sale as it is then @throws {Refused | import("./api.js").Lost} */
export async function amend(sale, patch) {
  const { body } = await call("PATCH", `/sales/${sale.id}`, { body: patch, type: "application/merge-patch+json", headers: asOperator() });
  return body;
}

/** Asks how many units are added to each item. */
export function openRestock(sale, onDone) {
  const added = sale.items.map((item) => ({ item, input: numberInput({ placeholder: "0" }) }));
  open("restock-dialog", "restock-title", `Restock ${sale.name}`, "Add units", "primary", onDone, () => {
    const items = added
      .map(({ item, input }) => ({ item, input, more: numberOf(input) ?? 0 }))
      .filter(({ more }) => more !== 0)
      .map(({ item, input, more }) => ({ input, change: { sku: item.sku, capacity: typeof more === "number" ? item.capacity + more : more } }));
    return {
      patch: { items: items.map((each) => each.change) },
      inputs: new Map(items.map(({ input }, at) => [`/items/${at}/capacity`, input])),
      nothing: items.length === 0,
    };
  }, sale, ...added.map(({ item, input }) => field(`${itemName(sale, item.sku)}: units to add`, input, `${count(item.capacity)} now, ${count(item.available)} of them free`)));
}

/** Asks whether the sale shall end. */
export function openClose(sale, onDone) {
  const early = stateOf(sale) === "not_yet_open";
  const held = sale.reserved > 0 ? `${plural(sale.reserved, "unit is", "units are")} held and can still be paid.` : "Nothing is held.";
  open("close-dialog", "close-title", `Close ${sale.name}?`, "Close the sale", "danger", onDone, () => {
    // By the server's clock, and a moment ago, so that it is closed now.
    const opens = early || sale.opens_at === null ? 0 : Date.parse(sale.opens_at);
    const closes_at = new Date(Math.max(opens + 1, serverNow() - 1000)).toISOString();
    return { patch: early ? { opens_at: null, closes_at } : { closes_at }, inputs: new Map(), nothing: false };
  }, sale, h("p", {}, `Nothing more is reserved from now on. ${held} It can be opened again.${early ? " The time at which it would have opened is forgotten." : ""}`));
}

function open(id, titleId, title, action, kind, onDone, collect, sale, ...content) {
  const dialog = byId(id);
  const general = h("p", { class: "mistake general", role: "alert" });
  const submit = h("button", { class: kind, type: "submit" }, action);
  const send = async (event) => {
    event.preventDefault();
    if (submit.hasAttribute("aria-disabled")) return;
    clearMistakes(form);
    const { patch, inputs, nothing } = collect();
    if (nothing) return dialog.close();
    submit.setAttribute("aria-disabled", "true");
    try {
      const now = await amend(sale, patch);
      dialog.close();
      onDone(now);
    } catch (error) {
      if (error instanceof Refused) showMistakes(general, inputs, error.problem.errors ?? [{ pointer: "", detail: error.message }]);
      else setText(general, "The server did not answer. Look whether it was done before you try again.");
    } finally {
      submit.removeAttribute("aria-disabled");
    }
  };
  const leave = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const form = h("form", { novalidate: true, onsubmit: send }, h("h2", { id: titleId }, title), ...content, general, h("div", { class: "ends" }, leave, submit));
  dialog.replaceChildren(form);
  dialog.showModal();
  (form.querySelector("input") ?? leave).focus();
}
