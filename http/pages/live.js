/**
 * A sale as it changes: its stream, and where that cannot be had, its counters every two seconds.
 *
 * The stream is connected again when it ends, from the last event that was seen. While nobody looks at the page it is
 * given up: browsers share six connections to a server among all their tabs.
 */

import { Refused, address, call } from "./api.js";
import { heardTime } from "./clock.js";
import { EventParser } from "./events.js";
import { Backoff, pause } from "./waiting.js";

/** Milliseconds between two looks at the counters, when there is no stream, and when nobody watches. */
const POLL_MS = 2_000;
const POLL_HIDDEN_MS = 10_000;

/** Milliseconds within which a stream must begin; one that is held back on its way does not. */
const FIRST_EVENT_MS = 5_000;

/** Milliseconds without a byte after which a stream is taken for dead; a heartbeat comes every 15 seconds. */
const SILENT_MS = 40_000;

/** Milliseconds after which what was missed is not asked for any more: nothing on the page shows it. */
const MISSED_MS_MAX = 120_000;

/**
 * @typedef {"connecting" | "live" | "polling" | "again" | "gone" | "refused"} State
 *   live by the stream; polling; connecting again; there is no such sale; the token is wrong
 * @typedef {{onCounts: (sale: any) => void, onTransition?: (transition: any) => void, onState: (state: State) => void}} Hears
 */

export class Live {
  #stopped = new AbortController();
  #shown = new AbortController();
  #lastId = /** @type {string | null} */ (null);
  #lastAt = 0;
  #state = "";
  #retryMs = 0;
  #backoff = new Backoff();

  /**
   * @param {string} sale
   * @param {Hears} hears
   * @param {string | null} token the operator's, who sees every transition
   */
  constructor(sale, hears, token = null) {
    this.path = `/sales/${sale}`;
    this.hears = hears;
    this.headers = token === null ? {} : { Authorization: `Bearer ${token}` };
    document.addEventListener("visibilitychange", () => this.#looked(), { signal: this.#stopped.signal });
    this.#follow();
  }

  stop() {
    this.#stopped.abort();
    this.#shown.abort();
  }

  #looked() {
    this.#shown.abort();
    this.#shown = new AbortController();
    if (!document.hidden) this.#backoff.reset();
  }

  #say(state) {
    if (state === this.#state || this.#stopped.signal.aborted) return;
    this.#state = state;
    this.hears.onState(state);
  }

  async #follow() {
    this.#say("connecting");
    while (!this.#stopped.signal.aborted) {
      const shown = this.#shown.signal;
      if (!document.hidden) {
        try {
          await this.#stream(shown);
        } catch (error) {
          if (error instanceof Refused && this.#isFinal(error)) return;
          // A position that the server does not know, after a recovery: from the beginning, then.
          if (error instanceof Refused && error.status < 500) this.#lastId = null;
        }
      }
      if (shown.aborted) continue;
      if (this.#state === "live") {
        // It was there, and will be again: the server has said when it wants to be asked, each of us at another time.
        this.#say("again");
        await pause(Math.max(this.#retryMs, this.#backoff.next()), AbortSignal.any([shown, this.#stopped.signal]));
      } else if (await this.#poll(shown)) {
        return;
      }
    }
  }

  /** Whether asking again is of no use. */
  #isFinal(error) {
    if (error.code === "unknown_sale") this.#say("gone");
    else if (error.status === 401) this.#say("refused");
    else return false;
    this.#stopped.abort();
    return true;
  }

  /** Reads the stream until it ends. */
  async #stream(shown) {
    const silence = new AbortController();
    let timer = setTimeout(() => silence.abort(), FIRST_EVENT_MS);
    const signal = AbortSignal.any([shown, silence.signal, this.#stopped.signal]);
    const sentAt = performance.now();
    try {
      const response = await fetch(address(`${this.path}/stream`), {
        headers: { Accept: "text/event-stream", ...this.headers, ...this.#resume() },
        cache: "no-store",
        credentials: "omit",
        signal,
      });
      heardTime(response.headers.get("Date"), sentAt);
      if (!response.ok || !response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
        const problem = await response.json().catch(() => ({}));
        throw new Refused(response.status, problem);
      }
      const parser = new EventParser((event) => this.#event(event));
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        parser.feed(value);
        this.#retryMs = parser.retryMs;
        if (this.#state !== "live") continue;
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENT_MS);
      }
    } finally {
      clearTimeout(timer);
    }
  }

  /** From where on the stream goes on; not at all where nothing shows what was missed. */
  #resume() {
    if (this.#lastId === null || performance.now() - this.#lastAt > MISSED_MS_MAX) return {};
    return { "Last-Event-ID": this.#lastId };
  }

  #event({ name, data, id }) {
    if (this.#stopped.signal.aborted) return;
    if (id !== null) this.#lastId = id;
    this.#lastAt = performance.now();
    this.#backoff.reset();
    this.#say("live");
    try {
      if (name === "counts") this.hears.onCounts(JSON.parse(data));
      else if (name === "transition") this.hears.onTransition?.(JSON.parse(data));
    } catch (error) {
      // A mistake of the page's must not end the stream.
      reportError(error);
    }
  }

  /** Looks at the counters until it is time for the stream again; whether it is all over. */
  async #poll(shown) {
    const either = AbortSignal.any([shown, this.#stopped.signal]);
    const until = document.hidden ? Number.POSITIVE_INFINITY : performance.now() + this.#backoff.next();
    while (!either.aborted) {
      try {
        const { body } = await call("GET", this.path, { headers: this.headers, signal: either });
        if (either.aborted) return false;
        this.hears.onCounts(body);
        this.#say("polling");
      } catch (error) {
        if (either.aborted) return false;
        if (error instanceof Refused && this.#isFinal(error)) return true;
        this.#say("again");
      }
      const left = until - performance.now();
      await pause(Math.max(0, Math.min(left, document.hidden ? POLL_HIDDEN_MS : POLL_MS)), either);
      if (performance.now() >= until) return false;
    }
    return false;
  }
}
