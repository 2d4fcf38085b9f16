/** The operator's dashboard: signing in, the list of sales, and the one that is looked at. */

import { Refused } from "./api.js";
import { byId, setText, show } from "./dom.js";
import { watchHealth } from "./health.js";
import { openSaleDialog } from "./sale-dialog.js";
import { stateOf } from "./sale-state.js";
import { SaleView } from "./sale-view.js";
import { SalesList } from "./sales-list.js";
import { keepToken, readFragment, token, writeSale } from "./session.js";
import { amend, openClose, openRestock } from "./small-dialogs.js";
import { Backoff, pause } from "./waiting.js";

/** Milliseconds between two looks at all sales. */
const LIST_MS = 4_000;

const LINK_WORDS = {
  connecting: "Connecting",
  live: "Live",
  polling: "Looks every 2 s",
  again: "Connecting again",
  gone: "No such sale",
  refused: "Token refused",
};

const list = new SalesList((id) => choose(id));
const view = new SaleView({ onSale: (sale) => list.take(sale), onState: heardState });
let selected = /** @type {string | null} */ (null);
let signedIn = false;

// Signing in -----------------------------------------------------------------------------------------------------------

byId("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = byId("token").value.trim();
  if (given === "") return signOut("Type the token that the server printed.");
  if (!/^[\x21-\x7e]+$/.test(given)) return signOut("A token has visible ASCII characters only; this is none.");
  keepToken(given);
  await signIn();
});

byId("sign-out").addEventListener("click", () => signOut(""));

/** Tries the token of this tab, and opens the desk with it. */
async function signIn() {
  const backoff = new Backoff();
  while (token() !== null) {
    try {
      await list.load();
      return opened();
    } catch (error) {
      if (error instanceof Refused && error.status === 401) return signOut("This is not the operator's token.");
      setText(byId("token-said"), error instanceof Refused ? `${error.message} Trying again.` : "The server does not answer. Trying again.");
      show(byId("sign-in"), true);
      await pause(backoff.next());
    }
  }
}

function opened() {
  signedIn = true;
  setText(byId("token-said"), "");
  byId("token").value = "";
  show(byId("sign-in"), false);
  show(byId("desk"), true);
  show(byId("sign-out"), true);
  follow(readFragment().sale ?? selected);
}

function signOut(words) {
  signedIn = false;
  keepToken(null);
  selected = null;
  view.close();
  list.clear();
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  show(byId("desk"), false);
  show(byId("sign-out"), false);
  show(byId("link-state"), false);
  show(byId("sign-in"), true);
  document.title = "Holdfast";
  setText(byId("token-said"), words);
  byId("token").setAttribute("aria-invalid", String(words !== ""));
  byId("token").focus();
}

// The sale that is looked at -------------------------------------------------------------------------------------------

/** Looks at a sale, and says so in the address. */
function choose(id) {
  writeSale(id);
  follow(id);
}

function follow(id) {
  const sale = id ?? list.sales[0]?.id ?? null;
  if (sale === selected && sale !== null) return;
  selected = sale;
  list.select(sale);
  if (sale === null) return nothing("No sale yet", "Make the first one: a name, how many there are, and how long a buyer has to pay.", true);
  show(byId("empty"), false);
  document.title = `${sale} · Holdfast`;
  view.open(sale);
}

function nothing(title, words, first) {
  view.close();
  show(byId("link-state"), false);
  show(byId("empty"), true);
  show(byId("first-sale"), first);
  setText(byId("empty-title"), title);
  setText(byId("empty-words"), words);
}

function heardState(state) {
  const link = byId("link-state");
  show(link, true);
  link.dataset.state = state;
  setText(link, LINK_WORDS[state]);
  if (state === "gone") nothing("There is no such sale", `Nothing here has the id “${selected}”. Choose one from the list.`, false);
  if (state === "refused") signOut("The token is not accepted any more.");
}

function made(sale) {
  list.take(sale);
  choose(sale.id);
  view.take(sale);
  // In the frame in which it is shown.
  requestAnimationFrame(() => byId("sale-name").focus());
}

// What can be done -----------------------------------------------------------------------------------------------------

for (const id of ["new-sale", "first-sale"]) byId(id).addEventListener("click", () => openSaleDialog(null, made));
byId("change").addEventListener("click", () => view.sale && openSaleDialog(view.sale, (sale) => view.take(sale)));
byId("restock").addEventListener("click", () => view.sale && openRestock(view.sale, (sale) => view.take(sale)));
byId("close").addEventListener("click", async () => {
  const { sale } = view;
  if (sale === null) return;
  show(byId("said"), false);
  if (stateOf(sale) !== "closed") return openClose(sale, (now) => view.take(now));
  try {
    view.take(await amend(sale, { closes_at: null }));
  } catch (error) {
    setText(byId("said"), error instanceof Refused ? error.message : "The server did not answer. Look whether it was done before you try again.");
    show(byId("said"), true);
  }
});

// All sales, and the address -------------------------------------------------------------------------------------------

addEventListener("hashchange", arrived);
addEventListener("popstate", arrived);

function arrived() {
  const { sale, brought } = readFragment();
  if (brought) {
    selected = null;
    return signIn();
  }
  if (signedIn) follow(sale);
}

setInterval(async () => {
  if (!signedIn || document.hidden) return;
  try {
    await list.load();
    if (selected === null && list.sales.length > 0) follow(null);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) signOut("The token is not accepted any more.");
  }
}, LIST_MS);

const { sale } = readFragment();
selected = null;
watchHealth();
if (token() === null) signOut("");
else signIn().then(() => signedIn && sale !== null && follow(sale));
