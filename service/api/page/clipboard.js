/** Buttons that copy, over plain HTTP too, where browsers offer no clipboard. */

import { announce, button, element } from "./dom.js";
import { say } from "./words.js";

const SHOWN_MS = 1600;

export function copyButton(text, source) {
  const made = button(text, async () => {
    const outcome = say((await copy(source())) ? "Copied" : "Not copied");
    made.textContent = outcome;
    announce(outcome);
    setTimeout(() => (made.textContent = say(text)), SHOWN_MS);
  });
  return made;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

function copyBySelection(text) {
  const focused = document.activeElement;
  const area = element("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}
