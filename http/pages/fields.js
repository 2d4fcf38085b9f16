/** Fields of a form, and what the server says of them: each mistake stands at its field. */

import { h, setText } from "./dom.js";

let made = 0;

/**
 * A field with its label, a hint, and room for what is wrong with it.
 *
 * @param {string} label
 * @param {any} input
 * @param {string} [hint]
 */
export function field(label, input, hint = "") {
  const id = `field-${++made}`;
  input.id = id;
  const mistake = h("p", { class: "mistake", id: `${id}-mistake` });
  input.setAttribute("aria-describedby", `${hint ? `${id}-hint ` : ""}${id}-mistake`);
  return h("div", { class: "field" }, h("label", { for: id }, label), input, hint ? h("p", { class: "small", id: `${id}-hint` }, hint) : null, mistake);
}

/** An input. */
export const input = (attributes = {}) => h("input", { autocomplete: "off", ...attributes });

/** An input of a whole number; as text, so that what is no number reaches the server, which says so. */
export const numberInput = (attributes = {}) => input({ inputmode: "numeric", ...attributes });

/** What a number field says: undefined when it is empty, and a text when it is no number. */
export function numberOf(element) {
  const text = element.value.replaceAll(/[\s,_]/g, "");
  if (text === "") return undefined;
  const number = Number(text);
  return Number.isNaN(number) ? element.value : number;
}

/** A field of an instant, where the reader is. */
export const instantInput = (instant = null) => input({ type: "datetime-local", step: 1, value: instant === null ? "" : localText(instant) });

/** What a field of an instant says, as the server reads it; null when it is empty. */
export const instantOf = (element) => (element.value === "" ? null : new Date(element.value).toISOString());

function localText(instant) {
  const date = new Date(instant);
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}

/** Takes all marks away. */
export function clearMistakes(form) {
  for (const each of form.querySelectorAll(".mistake")) setText(each, "");
  for (const each of form.querySelectorAll("[aria-invalid]")) each.removeAttribute("aria-invalid");
}

/**
 * Puts what is wrong at the fields, and the reader into the first of them.
 *
 * @param {HTMLElement} general where that stands which belongs to no field
 * @param {Map<string, any>} inputs by JSON pointer
 * @param {{pointer: string, detail: string}[]} mistakes
 */
export function showMistakes(general, inputs, mistakes) {
  const homeless = [];
  let first = null;
  for (const { pointer, detail } of mistakes) {
    const element = inputs.get(pointer);
    if (!element) {
      homeless.push(pointer ? `${pointer.slice(1)}: ${detail}` : detail);
      continue;
    }
    element.setAttribute("aria-invalid", "true");
    const mistake = document.getElementById(`${element.id}-mistake`);
    setText(mistake, `${mistake.textContent ? `${mistake.textContent}; ` : ""}${detail}`);
    first ??= element;
  }
  setText(general, homeless.join("; "));
  first?.focus();
}
