/** Why there is no whole answer, and every way out that there is. */

import { Countdown } from "./countdown.js";
import { button, element } from "./dom.js";
import { UNAUTHORIZED } from "./service.js";
import { say } from "./words.js";

const TOO_LARGE = 413;
const TOO_MANY_REQUESTS = 429;
const LEAST_WAIT_SECONDS = 1;

export class Trouble {
  #problem;
  #countdown = null;
  #whileCounting = [];

  /** `offers`: what can be done, by name; see app.js. */
  constructor(problem, offers) {
    this.#problem = problem;
    this.node = element("div", { class: passes(problem) ? "trouble passing" : "trouble" });
    if (problem.status === UNAUTHORIZED) this.#askForKey(offers);
    else this.#explain(problem, offers);
  }

  /** Stop counting down to the next attempt, for good; whether it was. */
  holdOff() {
    if (!this.#countdown?.holdOff()) return false;
    this.#problem.retryAfter = null;
    this.#whileCounting.forEach((node) => node.remove());
    return true;
  }

  #explain(problem, offers) {
    const ways = element("div", { class: "ways" }, ...waysOut(problem, offers));
    this.node.append(element("p", { dir: "auto" }, problem.detail), ways);
    if (passes(problem) && problem.retryAfter !== null) this.#countDown(ways, offers);
  }

  #countDown(ways, offers) {
    const left = element("span", { class: "countdown" });
    const never = button("Do not ask", () => {
      this.holdOff();
      offers.focusInput();
    });
    this.#countdown = new Countdown(left, Math.max(this.#problem.retryAfter, LEAST_WAIT_SECONDS), offers.again);
    this.#whileCounting = [left, never];
    ways.prepend(left);
    ways.append(never);
  }

  #askForKey(offers) {
    const input = element("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true });
    const use = (event) => {
      event.preventDefault();
      offers.useKey(input.value.trim());
    };
    const text = offers.hasKey() ? say("The service does not know this API key.") : say("The service asks for an API key.");
    const label = element("label", {}, say("API key"), " ", input);
    const submit = element("button", { type: "submit" }, say("Use it"));
    this.node.append(element("p", {}, text), element("form", { class: "ways", onsubmit: use }, label, submit));
    this.node.append(element("small", {}, say("Kept in this tab, and sent to this service alone.")));
    queueMicrotask(() => input.focus());
  }
}

/** Whether waiting helps. An engine that broke over a question might break over it again, so that is not repeated. */
function passes({ status, code, detail }) {
  return status === TOO_MANY_REQUESTS || (code === "not_ready" && !detail.startsWith("failed"));
}

/** Whether it is about the conversation as a whole, so that less of it would do. */
function isTooMuch({ status, code, field }) {
  return code === "context_too_long" || status === TOO_LARGE || field.startsWith("history");
}

function waysOut(problem, offers) {
  const ways = [];
  const canShorten = isTooMuch(problem) && offers.canLeaveOut();
  const isOfSetting = offers.isSetting(problem.field);
  if (canShorten) ways.push(button("Leave out the oldest turns and ask again", offers.leaveOut));
  if (canShorten) ways.push(button("Ask it in a new chat", offers.askAnew));
  if (!canShorten || isOfSetting) ways.push(button(passes(problem) ? "Ask now" : "Ask again", offers.again));
  if (isOfSetting) ways.push(button("Open the settings", () => offers.openSettings(problem.field)));
  return ways;
}
