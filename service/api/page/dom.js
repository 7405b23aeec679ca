/** Elements made from data. Text goes in as text nodes, whatever it holds; nothing here reads markup. */

import { say } from "./words.js";

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function button(text, onclick, attributes = {}) {
  return element("button", { type: "button", onclick, ...attributes }, say(text));
}

export const byId = (id) => document.getElementById(id);

/** For ears only: a screen reader says it when it has said what it is saying. */
export function announce(text) {
  byId("announcer").textContent = text;
}
