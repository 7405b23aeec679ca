/** Counts down and then acts, unless it is held off. In a tab that nobody sees it waits to be seen. */

import { say } from "./words.js";

const TICK_MS = 250;

export class Countdown {
  #timer;

  /** Shows in `node` how long it still is. */
  constructor(node, seconds, act) {
    const due = Date.now() + seconds * 1000;
    const tick = () => {
      const left = Math.ceil((due - Date.now()) / 1000);
      node.textContent = say("Asks again in {seconds} s.", { seconds: Math.max(left, 0) });
      if (left > 0 || document.hidden) return;
      this.holdOff();
      act();
    };
    this.#timer = setInterval(tick, TICK_MS);
    tick();
  }

  /** Whether it was still counting. */
  holdOff() {
    const wasCounting = this.#timer !== null;
    clearInterval(this.#timer);
    this.#timer = null;
    return wasCounting;
  }
}
