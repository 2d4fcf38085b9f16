/** Server-sent events, read from text as it comes. EventSource does the same, and cannot send a token. */

export class EventParser {
  #rest = "";
  #data = [];
  #name = "";

  /**
   * @param {(event: {name: string, data: string, id: string | null}) => void} onEvent `id` is that of this event alone
   */
  constructor(onEvent) {
    this.onEvent = onEvent;
    this.id = null;
    /** Milliseconds to wait before connecting again, as the server wants it. */
    this.retryMs = 0;
  }

  /** Takes what has arrived; what is not a whole line waits for the rest of it. */
  feed(text) {
    this.#rest += text;
    let begin = 0;
    for (;;) {
      const end = this.#rest.indexOf("\n", begin);
      if (end < 0) break;
      const last = this.#rest.charCodeAt(end - 1) === 13 ? end - 1 : end;
      this.#line(this.#rest.slice(begin, Math.max(begin, last)));
      begin = end + 1;
    }
    this.#rest = this.#rest.slice(begin);
  }

  #line(line) {
    if (line === "") {
      if (this.#data.length > 0) this.onEvent({ name: this.#name || "message", data: this.#data.join("\n"), id: this.id });
      this.#data = [];
      this.#name = "";
      this.id = null;
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#name = value;
    else if (field === "id") this.id = value;
    else if (field === "retry" && /^\d{1,6}$/.test(value)) this.retryMs = Number(value);
  }
}
