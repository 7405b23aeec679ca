/** The question being written. */

import { byId } from "./dom.js";
import { keep, recall } from "./storage.js";

const COMPOSING = 229; // what Safari says of the Enter that ends a composition, when it is no longer composing
const TALLEST_SHARE = 0.4;

export class Composer {
  #input = byId("input");
  #whenSent;
  #whenRecalled;
  #setAside = null;

  /** `whenSent(text, isEdit)` says whether it was taken; `whenRecalled()` gives the last question, or undefined. */
  constructor(whenSent, whenRecalled) {
    this.#whenSent = whenSent;
    this.#whenRecalled = whenRecalled;
    this.#input.addEventListener("input", () => this.#changed());
    this.#input.addEventListener("keydown", (event) => this.#pressed(event));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.write(recall("draft", ""));
  }

  focus() {
    this.#input.focus();
  }

  write(text) {
    this.#input.value = text;
    this.#input.setSelectionRange(text.length, text.length);
    this.#changed();
  }

  /** Whether an Escape, or the end of an edit, changed anything. */
  leaveEdit() {
    if (this.#setAside === null) return false;
    const draft = this.#setAside;
    this.#setAside = null;
    this.#showEdit();
    this.write(draft);
    return true;
  }

  /** Take the last question up again; what was written meanwhile comes back afterwards. */
  edit() {
    const question = this.#whenRecalled();
    if (question === undefined) return;
    this.#setAside ??= this.#input.value;
    this.write(question);
    this.#showEdit();
    this.focus();
  }

  showBusy(isBusy) {
    const hadFocus = [byId("send"), byId("stop")].includes(document.activeElement);
    byId("send").hidden = isBusy;
    byId("stop").hidden = !isBusy;
    if (hadFocus) this.focus();
  }

  #pressed(event) {
    if (event.isComposing || event.keyCode === COMPOSING) return;
    if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      this.#send();
    } else if (event.key === "ArrowUp" && this.#input.value === "" && this.#setAside === null) {
      event.preventDefault();
      this.edit();
    }
  }

  #send() {
    if (!this.#whenSent(this.#input.value, this.#setAside !== null)) return;
    if (!this.leaveEdit()) this.write("");
    this.focus();
  }

  #showEdit() {
    byId("editing").hidden = this.#setAside === null;
    document.body.classList.toggle("is-editing", this.#setAside !== null);
  }

  #changed() {
    if (this.#setAside === null) keep("draft", this.#input.value || null);
    this.#input.style.height = "auto";
    this.#input.style.height = `${Math.min(this.#input.scrollHeight, innerHeight * TALLEST_SHARE)}px`;
  }
}
