/** One question and its answer on the page. */

import { AnswerText } from "./answer_text.js";
import { copyButton } from "./clipboard.js";
import { announce, button, element } from "./dom.js";
import { factsOf } from "./facts.js";
import { Trouble } from "./trouble.js";
import { say } from "./words.js";

const PATIENCE_MS = 2000;

export class TurnView {
  #turn;
  #offers;
  #text;
  #body = element("div", { class: "text" });
  #foot = element("div", { class: "foot" });
  #tools = element("div", { class: "tools" });
  #trouble = null;
  #clock = null;
  #announced = null; // how many blocks were read out; null: the answer did not come while somebody listened

  constructor(turn, offers) {
    this.#turn = turn;
    this.#offers = offers;
    this.#text = new AnswerText(this.#body);
    const question = element("div", { class: "text", dir: "auto" }, turn.question);
    this.node = element(
      "li",
      {},
      element("article", { class: "question" }, element("h2", {}, say("You")), question, this.#tools),
      element("article", { class: "answer" }, element("h2", {}, say("Answer")), this.#body, this.#foot),
    );
  }

  /** The answer as far as it is there. */
  grow() {
    const blocks = this.#text.show(this.#turn.answer);
    this.#stopClock();
    this.node.dataset.state = "running";
    this.#announce(blocks, blocks.length - 1);
  }

  /** Everything but the answer's text, after its turn began or ended or another one came. */
  settle(isLast) {
    const { end, answer } = this.#turn;
    this.holdOff();
    this.#stopClock();
    const blocks = this.#text.show(answer);
    this.node.dataset.state = end?.kind ?? "waiting";
    this.#tools.replaceChildren(...(isLast && end ? [button("Edit", this.#offers.edit)] : []));
    this.#foot.replaceChildren(...(end ? this.#ending(end, isLast) : [this.#waiting()]));
    if (end) this.#announceEnd(blocks, end);
    else this.#announced = 0;
  }

  /** Keep what is asked for from being asked again by itself; whether it would have been. */
  holdOff() {
    return this.#trouble?.holdOff() ?? false;
  }

  #ending(end, isLast) {
    const facts = element("span", { class: "facts" }, factsOf(end));
    const ways = [];
    if (this.#turn.answer) ways.push(copyButton("Copy", () => this.#turn.answer));
    if (isLast && end.finish === "length") ways.push(button("Ask it to go on", this.#offers.goOn));
    if (isLast && end.kind !== "failed") ways.push(button("Answer again", this.#offers.again));
    const line = element("div", { class: "line" }, facts, ...ways);
    this.#trouble = end.kind === "failed" && isLast ? new Trouble(end.problem, this.#offers) : null;
    if (this.#trouble) return [...(this.#turn.answer ? [line] : []), this.#trouble.node];
    return end.kind === "failed" ? [element("p", { class: "trouble" }, end.problem.detail), line] : [line];
  }

  #waiting() {
    const since = Date.now();
    const text = element("span", { class: "facts" });
    this.#clock = setInterval(() => {
      const waited = Date.now() - since;
      if (waited > PATIENCE_MS) text.textContent = say("{seconds} s", { seconds: Math.floor(waited / 1000) });
    }, 250);
    return element("div", { class: "line" }, element("span", { class: "caret", "aria-hidden": "true" }), text);
  }

  #stopClock() {
    clearInterval(this.#clock);
    if (this.#clock !== null) this.#foot.replaceChildren();
    this.#clock = null;
  }

  /** Paragraph by paragraph, each when it is whole: a screen reader that is told every token says none. */
  #announce(blocks, upTo, ending = "") {
    const fresh = blocks.slice(this.#announced ?? upTo, upTo).map(({ text }) => text);
    if (fresh.length || ending) announce([...fresh, ending].join("\n"));
    if (this.#announced !== null) this.#announced = Math.max(this.#announced, upTo);
  }

  #announceEnd(blocks, end) {
    if (this.#announced === null) return;
    this.#announce(blocks, blocks.length, end.problem?.detail ?? factsOf(end));
    this.#announced = null;
  }
}
