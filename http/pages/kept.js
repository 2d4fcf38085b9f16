/** What the browser keeps for this page. Where it keeps nothing, the page remembers until it is closed. */

class Kept {
  #memory = new Map();

  /** @param {() => Storage} storage a function, because the mere look at it may be refused */
  constructor(storage) {
    this.storage = storage;
    this.lasting = true;
    try {
      storage().setItem("holdfast.probe", "1");
      storage().removeItem("holdfast.probe");
    } catch {
      this.lasting = false;
    }
  }

  /** @returns {string | null} */
  get(name) {
    return this.lasting ? this.storage().getItem(name) : (this.#memory.get(name) ?? null);
  }

  set(name, value) {
    if (this.lasting) this.storage().setItem(name, value);
    else this.#memory.set(name, value);
  }

  drop(name) {
    if (this.lasting) this.storage().removeItem(name);
    else this.#memory.delete(name);
  }
}

/** For good, in all tabs. */
export const browser = new Kept(() => localStorage);

/** As long as the tab is open, in this tab. */
export const tab = new Kept(() => sessionStorage);
