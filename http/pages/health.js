/** Whether the server can sell, and what is wrong all the same: a banner under the bar. */

import { Refused, call } from "./api.js";
import { byId, h, show } from "./dom.js";

const EVERY_MS = 5_000;

/** Looks now, and then every few seconds while somebody looks at the page. */
export function watchHealth() {
  const look = async () => {
    if (document.hidden) return;
    try {
      const { body } = await call("GET", "/readyz");
      banner("care", "Something is wrong, and selling goes on", body.alarms ?? []);
    } catch (error) {
      if (error instanceof Refused) banner("trouble", "Not ready: some of it cannot be sold", error.problem.reasons ?? [error.message]);
      else banner("trouble", "The server does not answer", ["This page asks again by itself."]);
    }
  };
  look();
  setInterval(look, EVERY_MS);
  document.addEventListener("visibilitychange", look);
}

let shown = "";

function banner(kind, title, reasons) {
  const words = reasons.map((each) => (typeof each === "string" ? each : (each.detail ?? each.message ?? JSON.stringify(each))));
  const now = JSON.stringify([kind, title, words]);
  // Said once, and not with every look.
  if (now === shown) return;
  shown = now;
  const health = byId("health");
  show(health, words.length > 0);
  health.replaceChildren(
    ...(words.length > 0 ? [h("div", { class: "notice", "data-kind": kind }, h("strong", {}, title), h("ul", {}, ...words.map((each) => h("li", {}, each))))] : []),
  );
}
