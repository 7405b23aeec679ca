/** The conversation on the page. */

import { byId, element } from "./dom.js";
import { TurnView } from "./turn_view.js";
import { say } from "./words.js";

export class Transcript {
  #conversation;
  #offers;
  #views = new Map();
  #list = byId("turns");
  #isDrawing = false;

  constructor(conversation, offers) {
    this.#conversation = conversation;
    this.#offers = offers;
  }

  /** Bring the page in line with the conversation: turns that came, went or ended. */
  show() {
    const { turns, firstSent } = this.#conversation;
    for (const [turn, view] of this.#views) if (!turns.includes(turn)) this.#remove(turn, view);
    for (const turn of turns) this.#viewOf(turn).settle(turn === this.#conversation.last);
    this.#list.querySelector(".border")?.remove();
    turns.forEach((turn, at) => this.#viewOf(turn).node.classList.toggle("left-out", at < firstSent));
    if (firstSent > 0) this.#viewOf(turns[firstSent]).node.before(border());
    byId("welcome").hidden = turns.length > 0;
    byId("new-chat").hidden = turns.length === 0;
  }

  /** Show more of the answer that is coming, at most once a frame. `drawn` is called after it. */
  grow(drawn) {
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      const view = this.#views.get(this.#conversation.last);
      if (view && !this.#conversation.last.end) view.grow();
      drawn();
    });
  }

  clear() {
    for (const [turn, view] of this.#views) this.#remove(turn, view);
    this.#list.replaceChildren();
  }

  /** As a turn's. */
  holdOff() {
    return this.#views.get(this.#conversation.last)?.holdOff() ?? false;
  }

  #viewOf(turn) {
    if (!this.#views.has(turn)) {
      const view = new TurnView(turn, this.#offers);
      this.#views.set(turn, view);
      this.#list.append(view.node);
    }
    return this.#views.get(turn);
  }

  #remove(turn, view) {
    view.holdOff();
    view.node.remove();
    this.#views.delete(turn);
  }
}

function border() {
  return element("li", { class: "border" }, say("What is above is not sent any more."));
}
