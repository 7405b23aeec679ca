/** How answers are asked for: thinking, system prompt, sampling, API key. Kept for the tab; a new chat keeps them too. */

import { byId } from "./dom.js";
import { describe } from "./service.js";
import { numberField, numberIn } from "./setting_field.js";
import { keep, recall } from "./storage.js";

export class Settings {
  #values = { thinking: false, system: "", numbers: {}, ...recall("settings", {}) };
  #panel = byId("settings");
  #toggle = byId("settings-toggle");
  #isDescribed = false;

  constructor() {
    this.#toggle.addEventListener("click", () => (this.isOpen ? this.close() : this.open()));
    this.#panel.addEventListener("input", () => this.#read());
    byId("thinking").addEventListener("change", () => this.#read());
    byId("defaults").addEventListener("click", () => this.#reset());
    byId("key").value = recall("key", "");
    this.#write();
  }

  get key() {
    return byId("key").value.trim();
  }

  set key(key) {
    byId("key").value = key;
    this.#read();
  }

  get isOpen() {
    return !this.#panel.hidden;
  }

  /** What a request carries of it. Thinking is a system prompt, and the service takes one or the other. */
  request() {
    const { thinking, system, numbers } = this.#values;
    const sent = thinking ? { thinking } : system.trim() ? { system } : {};
    return { ...sent, ...Object.fromEntries(Object.entries(numbers).map(([name, value]) => [name, Number(value)])) };
  }

  /** Whether everything can be sent; shows what cannot. */
  check() {
    const wrong = this.#inputs().find((input) => !input.checkValidity());
    if (!wrong) return true;
    this.#reveal();
    wrong.reportValidity();
    return false;
  }

  isSetting(name) {
    return name === "system" || name === "thinking" || name in this.#values.numbers;
  }

  open() {
    this.#reveal();
    byId("system").focus();
    this.#describe();
  }

  /** Show the panel, with the cursor in the field `name`. */
  async openAt(name) {
    this.#reveal();
    await this.#describe();
    (byId(`setting-${name}`) ?? byId(name))?.focus();
  }

  close() {
    this.#panel.hidden = true;
    this.#toggle.setAttribute("aria-expanded", "false");
    this.#showEffect();
  }

  #reveal() {
    this.#panel.hidden = false;
    this.#toggle.setAttribute("aria-expanded", "true");
    this.#showEffect();
  }

  /** Fill the panel from the service's description, once there is one. */
  async #describe() {
    if (this.#isDescribed) return;
    const described = await describe().catch(() => null);
    if (!described || this.#isDescribed) return;
    this.#isDescribed = true;
    const numbers = Object.entries(described.fields).filter(([, schema]) => numberIn(schema));
    byId("fields").replaceChildren(...numbers.map(([name, schema]) => numberField(name, schema)));
    byId("system-hint").textContent = described.fields.system.description;
    byId("key-row").hidden = !described.asksForKey && !this.key;
    this.#write();
  }

  #inputs() {
    return [...byId("fields").querySelectorAll("input")];
  }

  #read() {
    const filled = this.#inputs().filter((input) => input.value !== "" && input.validity.valid);
    const numbers = Object.fromEntries(filled.map((input) => [input.dataset.name, input.value]));
    this.#values = {
      thinking: byId("thinking").checked,
      system: byId("system").value,
      numbers: this.#isDescribed ? numbers : this.#values.numbers,
    };
    keep("settings", this.#values);
    keep("key", this.key || null);
    this.#showEffect();
  }

  #write() {
    byId("thinking").checked = this.#values.thinking;
    byId("system").value = this.#values.system;
    for (const input of this.#inputs()) input.value = this.#values.numbers[input.dataset.name] ?? "";
    this.#showEffect();
  }

  #reset() {
    for (const input of [...this.#inputs(), byId("system")]) input.value = "";
    this.#values.numbers = {};
    this.#read();
  }

  #showEffect() {
    const { thinking, system, numbers } = this.#values;
    const changed = Object.keys(numbers).length + (system.trim() ? 1 : 0);
    byId("changed").textContent = changed ? ` · ${changed}` : "";
    byId("system").disabled = thinking;
    byId("excluded").hidden = !thinking || !(system.trim() || this.isOpen);
  }
}
