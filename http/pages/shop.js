/** The buyers' page of a sale: what is left, the form, and the buyer's own tickets. */

import { Lost, Refused, call } from "./api.js";
import { Attempt } from "./attempt.js";
import { isLasting } from "./buyer.js";
import { serverNow } from "./clock.js";
import { byId, framed, setText, show } from "./dom.js";
import { count, countdown, plural } from "./format.js";
import { Live } from "./live.js";
import { mayComeBack, stateOf } from "./sale-state.js";
import { OrderForm } from "./shop-order.js";
import { Tickets } from "./shop-tickets.js";
import { NEEDS_TOKEN, facts, refusedReservation, stockWords, troubleWords } from "./shop-words.js";
import { Backoff, pause } from "./waiting.js";

const SALE = decodeURIComponent(location.pathname.replace(/\/$/, "").split("/").at(-1) ?? "");

/** Milliseconds for which what was said of stock that came back stands, before it may be said again. */
const HINT_MS = 10_000;

const LINK_WORDS = {
  connecting: "Connecting",
  live: "Live",
  polling: "Looks every 2 s",
  again: "Connecting again",
  gone: "No such sale",
  refused: "Refused",
};

/** The sale as it is known now. @type {any} */
let sale = null;
/** The reservation that is under way. @type {Attempt | null} */
let attempt = null;
/** What is awaited to come back, after it was refused. @type {{sku: string, quantity: number, until: number} | null} */
let awaited = null;
let sells = true;
let hintedAt = Number.NEGATIVE_INFINITY;

const announce = (words) => setText(byId("announce"), words);
const redraw = framed(draw);
const form = new OrderForm(byId("items"), redraw);
const tickets = new Tickets(() => sale, { announce, onChange: redraw });

// What is left ---------------------------------------------------------------------------------------------------------

function draw() {
  if (sale === null) return;
  const now = serverNow();
  const state = stateOf(sale, now);
  document.title = `${sale.name} · Shop`;
  setText(byId("name"), sale.name);
  setText(byId("facts"), facts(sale));
  form.update(sale, mostOf);
  const lines = form.lines();
  const units = lines.reduce((sum, line) => sum + line.quantity, 0);
  const open = sells && (state === "open" || state === "all_held");
  const button = byId("reserve");
  // While it is asked, the button keeps the focus, and does nothing.
  button.disabled = attempt === null && !(open && units > 0);
  button.setAttribute("aria-disabled", String(attempt !== null));
  setText(button, buttonWords(state, units, now));
  setText(byId("stock"), state === "open" ? leftOver(lines) : stockWords(state, sale, now));
  byId("shop").dataset.state = state;
  drawAwaited();
}

function buttonWords(state, units, now) {
  if (attempt !== null) return "Asking…";
  if (state === "not_yet_open") return `Opens in ${countdown(Date.parse(sale.opens_at) - now)}`;
  if (state === "closed") return "Closed";
  if (state === "sold_out") return "Sold out";
  return units > 0 ? `Reserve ${count(units)}` : "Reserve";
}

function leftOver(lines) {
  if (sale.items.length > 1 && lines.length > 1) return "All of it, or nothing.";
  const mine = ownUnits();
  if (sale.max_per_buyer === null || mine === 0) return "";
  return `You have ${count(mine)} of the ${count(sale.max_per_buyer)} that one buyer may have.`;
}

/** Units that this buyer holds or has bought, of one item or of all. */
function ownUnits(sku = null) {
  const lines = tickets.living().flatMap((ticket) => ticket.lines);
  return lines.filter((line) => sku === null || line.sku === sku).reduce((sum, line) => sum + line.quantity, 0);
}

function mostOf(item) {
  const limits = [item.available > 0 ? item.available : item.capacity];
  if (sale.max_per_buyer !== null) limits.push(sale.max_per_buyer - ownUnits());
  if (item.max_per_buyer) limits.push(item.max_per_buyer - ownUnits(item.sku));
  return Math.min(...limits);
}

// Reserving ------------------------------------------------------------------------------------------------------------

byId("order").addEventListener("submit", (event) => {
  event.preventDefault();
  const lines = form.lines();
  if (attempt !== null || sale === null || lines.length === 0) return;
  const body = sale.items.length === 1 ? { quantity: lines[0].quantity } : { lines };
  reserve({ method: "POST", path: `/sales/${SALE}/tickets`, body });
});

async function reserve(wanted) {
  attempt = new Attempt(`reserve.${SALE}`, (error) => {
    say("trouble", "Still asking.", troubleWords(error), { label: "Stop asking", act: () => attempt?.giveUp() });
  });
  awaited = null;
  form.freeze(true);
  say("busy", "Asking…", "");
  draw();
  try {
    const answer = await attempt.run(wanted);
    attempt = null;
    if (answer === null) await gaveUp();
    else reserved(answer);
  } catch (error) {
    attempt = null;
    if (!(error instanceof Refused)) throw error;
    refused(error, wanted);
  } finally {
    attempt = null;
    form.freeze(false);
    redraw();
  }
}

function reserved({ body, sentAt }) {
  say("", "", "");
  form.clear();
  tickets.take(body, sentAt);
  tickets.focus(body.id);
  announce(`Held for you. ${countdown(body.expires_in_ms)} left to pay.`);
}

async function gaveUp() {
  say("trouble", "Stopped asking.", "What was sent before may have worked: then the ticket appears above.");
  await tickets.load().catch(() => {});
}

function refused(error, wanted) {
  const { title, words } = refusedReservation(error, sale);
  const { code, problem } = error;
  if (error.status === 401) return noSelling();
  say("trouble", title, words);
  if (code === "all_held") {
    const lines = wanted.body.lines ?? [{ sku: sale.items[0].sku, quantity: wanted.body.quantity }];
    const quantity = lines.find((line) => line.sku === problem.sku)?.quantity ?? 1;
    awaited = { sku: problem.sku, quantity, until: performance.now() + problem.retry_after_ms };
  }
  if (code === "sold_out") form.lower(problem.sku, problem.available);
  if (code === "limit_reached") tickets.load().catch(() => {});
}

/** A held-up buyer is told when to ask again, and when something has come back. */
function drawAwaited() {
  if (awaited === null) return;
  const item = sale.items.find((each) => each.sku === awaited.sku);
  const left = awaited.until - performance.now();
  if (item && item.available >= awaited.quantity) {
    awaited = null;
    hint(`${plural(item.available, "is", "are")} free again.`);
  } else if (item && item.available + mayComeBack(item) === 0) {
    awaited = null;
    say("trouble", "Sold out", "What others held has been paid.");
  } else if (stateOf(sale) === "closed") {
    // Nothing that comes back is sold any more.
    awaited = null;
    say("", "", "");
  } else {
    setText(byId("said-after"), left > 0 ? `The next hold ends in ${countdown(left)} at the latest.` : "The next hold has ended: try again.");
  }
}

/** Says that there is something to be had again. */
function hint(words) {
  say("well", words, "Be quick: others see it, too.");
}

/** Puts a sentence under the form, which is read aloud, and what changes each second beside it, which is not. */
function say(kind, title, words, action = null) {
  const said = byId("said");
  said.dataset.kind = kind;
  const parts = [];
  if (title) parts.push(Object.assign(document.createElement("strong"), { textContent: title }));
  if (words) parts.push(Object.assign(document.createElement("span"), { textContent: words }));
  if (action) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: action.label });
    button.addEventListener("click", action.act);
    parts.push(button);
  }
  said.replaceChildren(...parts);
  setText(byId("said-after"), "");
}

function noSelling() {
  sells = false;
  setText(byId("unsold"), `${NEEDS_TOKEN.title}. ${NEEDS_TOKEN.words}`);
  show(byId("unsold"), true);
  show(byId("order-section").querySelector(".foot"), false);
  say("", "", "");
  redraw();
}

// The sale as it changes -----------------------------------------------------------------------------------------------

function heardCounts(now) {
  const before = sale;
  sale = now;
  if (before === null) begin();
  // What came back while somebody looks at an empty shop is said once.
  const cameBack = before !== null && before.available === 0 && now.available > 0;
  if (cameBack && awaited === null && attempt === null && stateOf(now) === "open" && performance.now() - hintedAt > HINT_MS) {
    hintedAt = performance.now();
    hint(`${plural(now.available, "is", "are")} free again.`);
  }
  redraw();
}

function heardState(state) {
  const link = byId("link-state");
  link.dataset.state = state;
  setText(link, LINK_WORDS[state]);
  if (state === "gone") nothing("There is no such sale", `Nothing is sold here under the name “${SALE}”. Look at the address again.`);
  if (state === "again" && sale === null) setText(byId("loading"), "The sale cannot be read at the moment. We ask again by ourselves.");
  if (state === "live" && sale !== null) loadTickets();
}

function nothing(title, words) {
  show(byId("loading"), false);
  show(byId("shop"), false);
  show(byId("nothing"), true);
  document.title = `${title} · Shop`;
  setText(byId("nothing-title"), title);
  setText(byId("nothing-words"), words);
}

/** The sale is known for the first time. */
function begin() {
  show(byId("loading"), false);
  show(byId("shop"), true);
  setText(
    byId("keeping"),
    isLasting()
      ? "Your tickets belong to this browser: it keeps a secret that names you, and nothing else does. Nothing here costs money; paying is a rehearsal."
      : "This browser keeps nothing for this page: when you close the tab, your tickets can no longer be found. Nothing here costs money; paying is a rehearsal.",
  );
  draw();
  loadTickets();
  const interrupted = Attempt.interrupted(`reserve.${SALE}`);
  if (interrupted !== null) reserve(interrupted);
}

let loading = false;

/** Reads the buyer's tickets, as often as it takes. */
async function loadTickets() {
  if (loading) return;
  loading = true;
  const backoff = new Backoff();
  for (let done = false; !done; ) {
    try {
      await tickets.load();
      done = true;
    } catch (error) {
      if (error instanceof Refused && error.status < 500) {
        done = true;
        if (error.status === 401) noSelling();
      } else if (error instanceof Lost || error instanceof Refused) {
        await pause(backoff.next());
      } else {
        throw error;
      }
    }
  }
  loading = false;
}

document.addEventListener("visibilitychange", () => {
  // A machine that slept has not counted.
  if (!document.hidden && sale !== null) loadTickets();
});
setInterval(redraw, 250);

if (/^[a-z0-9][a-z0-9-]{0,63}$/.test(SALE)) new Live(SALE, { onCounts: heardCounts, onState: heardState });
else heardState("gone");
