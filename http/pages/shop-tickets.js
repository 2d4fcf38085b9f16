/** The buyer's tickets: each a stub with what is left of its hold, and what can be done with it. */

import { Refused, call } from "./api.js";
import { Attempt } from "./attempt.js";
import { asBuyer } from "./buyer.js";
import { byId, h, setText, show } from "./dom.js";
import { clockTime, countdown, moment, plural } from "./format.js";
import { linesText } from "./sale-state.js";
import { refusedTicket, troubleWords } from "./shop-words.js";
import { Backoff, pause } from "./waiting.js";

/** Milliseconds between two looks at the clock: a second is never skipped. */
const TICK_MS = 200;

/** What is left of a hold when it is said aloud, milliseconds. */
const WARNINGS_MS = [300_000, 60_000, 15_000];

export class Tickets {
  #stubs = new Map();

  /**
   * @param {() => any} sale as it is known now
   * @param {{announce: (words: string) => void, onChange: () => void}} hears
   */
  constructor(sale, hears) {
    this.sale = sale;
    this.hears = hears;
    setInterval(() => this.#tick(), TICK_MS);
  }

  /** Tickets that hold something or were paid. @returns {any[]} */
  living() {
    return [...this.#stubs.values()].map((stub) => stub.ticket).filter((each) => each.status === "reserved" || each.status === "purchased");
  }

  /** Reads all tickets of this buyer. @throws {Refused | import("./api.js").Lost} */
  async load() {
    let cursor = null;
    do {
      const query = `?limit=100${cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`}`;
      const { body, sentAt } = await call("GET", `/sales/${this.sale().id}/tickets${query}`, { headers: asBuyer() });
      for (const ticket of body.items) this.take(ticket, sentAt);
      cursor = body.next;
    } while (cursor !== null);
  }

  /**
   * Shows a ticket as it was answered.
   *
   * @param {any} ticket
   * @param {number} sentAt when it was asked for, by performance.now(): the hold ends no later than counted from here
   */
  take(ticket, sentAt) {
    const stub = this.#stubs.get(ticket.id) ?? this.#add(ticket);
    // An answer that was overtaken by a later one says nothing new: a ticket never returns to being reserved.
    if (stub.ticket.status !== "reserved" && ticket.status === "reserved") return stub;
    stub.ticket = ticket;
    stub.deadline = sentAt + ticket.expires_in_ms;
    stub.draw();
    this.#arrange();
    this.hears.onChange();
    return stub;
  }

  /** Moves the reader to a ticket. */
  focus(id) {
    this.#stubs.get(id)?.element.focus();
  }

  #add(ticket) {
    const stub = new Stub(ticket, this);
    this.#stubs.set(ticket.id, stub);
    return stub;
  }

  #arrange() {
    const stubs = [...this.#stubs.values()].sort((one, other) => (one.ticket.reserved_at < other.ticket.reserved_at ? 1 : -1));
    const current = stubs.filter((stub) => stub.isCurrent());
    const ended = stubs.filter((stub) => !stub.isCurrent());
    place(byId("tickets"), current);
    place(byId("ended"), ended);
    setText(byId("earlier-title"), plural(ended.length, "earlier ticket"));
    show(byId("earlier"), ended.length > 0);
    show(byId("mine"), stubs.length > 0);
  }

  #tick() {
    for (const stub of this.#stubs.values()) stub.tick();
  }
}

/** Puts the stubs in this order, and moves none that stands right: what has the focus keeps it. */
function place(parent, stubs) {
  stubs.forEach((stub, at) => {
    if (parent.children[at] !== stub.element) parent.insertBefore(stub.element, parent.children[at] ?? null);
  });
  while (parent.children.length > stubs.length) parent.lastChild.remove();
}

class Stub {
  #attempt = null;
  #warned = 0;
  #checking = false;
  #reserved;

  constructor(ticket, tickets) {
    this.ticket = ticket;
    this.tickets = tickets;
    this.deadline = 0;
    //: One that ended while it was looked at stays where it is.
    this.#reserved = ticket.status === "reserved";
    this.time = h("span", { class: "time", role: "timer" });
    this.timeWords = h("span", { class: "time-words" });
    this.what = h("h3", { class: "what" });
    this.since = h("p", { class: "small since" });
    this.said = h("p", { class: "said-here", role: "status" });
    this.payButton = h("button", { type: "button", class: "primary", onclick: () => this.#pay() }, "Pay");
    this.cancelButton = h("button", { type: "button", onclick: () => this.#cancel() }, "Give back");
    this.declineButton = h("button", { type: "button", class: "quiet", onclick: () => this.#pay("decline") }, "Rehearse a declined card");
    this.actions = h("div", { class: "actions" }, this.payButton, this.cancelButton, this.declineButton);
    this.element = h(
      "article", { class: "ticket", tabindex: "-1" },
      h("div", { class: "stub" }, this.time, this.timeWords),
      h("div", { class: "body" }, this.what, this.since, this.actions, this.said),
    );
    const interrupted = Attempt.interrupted(`pay.${ticket.id}`);
    if (interrupted !== null && this.#reserved) this.#ask(`pay.${ticket.id}`, interrupted, "Paying…");
  }

  isCurrent() {
    return this.ticket.status === "reserved" || this.ticket.status === "purchased" || this.#reserved;
  }

  draw() {
    const { ticket } = this;
    this.element.dataset.status = ticket.status;
    const words = linesText(this.tickets.sale(), ticket.lines);
    setText(this.what, words);
    this.element.setAttribute("aria-label", `${words}, ${STATUS_WORDS[ticket.status]}`);
    setText(this.since, `${ENDED_WORDS[ticket.status](ticket)} · ${ticket.id}`);
    this.payButton.setAttribute("aria-label", `Pay for ${words}`);
    this.cancelButton.setAttribute("aria-label", `Give back ${words}`);
    show(this.actions, ticket.status === "reserved");
    this.tick();
  }

  tick() {
    if (this.ticket.status !== "reserved") {
      setText(this.time, STATUS_MARKS[this.ticket.status]);
      setText(this.timeWords, STATUS_WORDS[this.ticket.status]);
      return;
    }
    const left = this.deadline - performance.now();
    setText(this.time, countdown(left));
    setText(this.timeWords, left > 0 ? "left to pay" : "checking");
    this.element.dataset.hurry = left < 60_000 ? "yes" : "no";
    const warning = WARNINGS_MS.findLastIndex((each) => left <= each) + 1;
    if (warning > this.#warned && left > 0) {
      // The first look tells what the page shows anyway; only what passes while it is open is said aloud.
      if (this.#warned > 0 || left > WARNINGS_MS[warning - 1] - 2 * TICK_MS) {
        this.tickets.hears.announce(`${countdown(left)} left to pay for ${this.what.textContent}.`);
      }
      this.#warned = warning;
    }
    if (left <= 0) this.#check();
  }

  /** The time is up by our count; the server's count decides. */
  async #check() {
    if (this.#checking) return;
    this.#checking = true;
    const backoff = new Backoff();
    while (this.ticket.status === "reserved" && this.deadline <= performance.now()) {
      try {
        const { body, sentAt } = await call("GET", `/tickets/${this.ticket.id}`, { headers: asBuyer() });
        this.tickets.take(body, sentAt);
        if (body.status === "expired") this.tickets.hears.announce(`The hold of ${this.what.textContent} ran out.`);
        // A deadline that lies between the two clocks: not a storm of questions.
        else if (body.status === "reserved") await pause(Math.max(50, body.expires_in_ms));
      } catch {
        await pause(backoff.next());
      }
    }
    this.#checking = false;
  }

  #pay(outcome = "approve") {
    const body = outcome === "approve" ? {} : { outcome };
    this.#ask(`pay.${this.ticket.id}`, { method: "POST", path: `/tickets/${this.ticket.id}/payment`, body }, "Paying…");
  }

  #cancel() {
    this.#ask(`cancel.${this.ticket.id}`, { method: "DELETE", path: `/tickets/${this.ticket.id}/payment` }, "Giving back…");
  }

  async #ask(name, wanted, words) {
    if (this.#attempt !== null) return;
    const attempt = (this.#attempt = new Attempt(name, (error) => this.#say(troubleWords(error), "trouble")));
    this.#say(words, "busy");
    this.#enable(false);
    try {
      const answer = await attempt.run(wanted);
      if (answer !== null) this.#ended(answer.body, answer.sentAt);
    } catch (error) {
      await this.#refused(error);
    } finally {
      this.#attempt = null;
      this.#enable(true);
    }
  }

  #ended(ticket, sentAt) {
    const hadFocus = this.element.contains(document.activeElement);
    this.tickets.take(ticket, sentAt);
    // The button that was pressed is gone.
    if (hadFocus) this.element.focus();
    const pending = ticket.durability_pending;
    this.#say(pending ? `Paid, and still on its way to where it survives everything (${pending}).` : SAID_AT_END[ticket.status] ?? "", "well");
  }

  async #refused(error) {
    if (!(error instanceof Refused)) throw error;
    if (error.problem.ticket) return this.#ended(error.problem.ticket, performance.now());
    const { title, words } = refusedTicket(error);
    this.#say(`${title}. ${words}`, "trouble");
    if (error.code === "payment_declined") return;
    const now = await call("GET", `/tickets/${this.ticket.id}`, { headers: asBuyer() }).catch(() => null);
    if (now !== null) this.tickets.take(now.body, now.sentAt);
  }

  #say(words, kind) {
    this.said.dataset.kind = kind;
    setText(this.said, words);
  }

  #enable(enabled) {
    for (const button of [this.payButton, this.cancelButton, this.declineButton]) {
      // Disabled by word and not by attribute, or the focus would be lost in the middle.
      button.setAttribute("aria-disabled", String(!enabled));
    }
  }
}

const STATUS_MARKS = { purchased: "✓", cancelled: "↩", expired: "0:00" };
const STATUS_WORDS = { reserved: "held for you", purchased: "paid", cancelled: "given back", expired: "ran out" };
const ENDED_WORDS = {
  reserved: (ticket) => `Reserved at ${clockTime(ticket.reserved_at)}`,
  purchased: (ticket) => `Paid ${moment(ticket.purchased_at)}`,
  cancelled: (ticket) => `Given back ${moment(ticket.cancelled_at)}`,
  expired: (ticket) => `Ran out ${moment(ticket.expired_at)}, not charged`,
};
const SAID_AT_END = { purchased: "Paid. It is yours.", cancelled: "Given back; others can have it now." };
