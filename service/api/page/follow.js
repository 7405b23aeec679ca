/** Keeps the newest line in sight, as long as the reader is there; who has scrolled up is left in peace. */

import { byId } from "./dom.js";

const CLOSE_PX = 60;

export class Follow {
  #isFollowing = true;
  #latestY = 0;
  #jump = byId("jump");

  constructor() {
    addEventListener("scroll", () => this.#look(), { passive: true });
    addEventListener("resize", () => this.keep());
    this.#jump.addEventListener("click", () => this.toEnd());
  }

  /** After the page grew. */
  keep() {
    if (this.#isFollowing) this.toEnd();
    else this.#jump.hidden = atEnd();
  }

  toEnd() {
    this.#isFollowing = true;
    this.#jump.hidden = true;
    scrollTo(0, document.documentElement.scrollHeight);
  }

  #look() {
    if (atEnd()) this.#isFollowing = true;
    else if (scrollY < this.#latestY) this.#isFollowing = false;
    this.#jump.hidden = this.#isFollowing;
    this.#latestY = scrollY;
  }
}

function atEnd() {
  return scrollY + innerHeight >= document.documentElement.scrollHeight - CLOSE_PX;
}
