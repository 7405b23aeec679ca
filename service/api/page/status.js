/** Who answers, and whether: asked of `GET /` while somebody looks, seldom while all is well. */

import { byId, element } from "./dom.js";
import { health } from "./service.js";
import { say } from "./words.js";

const WELL_MS = 30_000;
const UNWELL_MS = 5_000;

const STATES = {
  healthy: "Ready",
  starting: "Starting",
  loading: "Loading",
  draining: "Shutting down",
  failed: "Failed",
  unreachable: "Not reachable",
};

export class Status {
  #timer = null;
  #isBusy;

  /** While `isBusy()`, an answer that comes tells enough. */
  constructor(isBusy) {
    this.#isBusy = isBusy;
    document.addEventListener("visibilitychange", () => this.look());
  }

  async look() {
    clearTimeout(this.#timer);
    if (document.hidden) return;
    const seen = this.#isBusy() ? null : await health().catch(() => ({ status: "unreachable", reason: "" }));
    if (seen) show(seen);
    clearTimeout(this.#timer); // of another look, meanwhile
    this.#timer = setTimeout(() => this.look(), pause(seen));
  }
}

function pause(seen) {
  if (!seen || seen.status === "healthy") return WELL_MS;
  return seen.retryAfter ? seen.retryAfter * 1000 : UNWELL_MS;
}

function show({ status, reason, model, degraded = [], revision }) {
  byId("status").dataset.state = status;
  const state = say(STATES[status] ?? status);
  setText(byId("status-text"), reason ? `${state}: ${reason}` : state);
  if (model) showModel(model, revision);
  byId("degraded").hidden = degraded.length === 0;
  byId("degraded").querySelector("ul").replaceChildren(...degraded.map((path) => element("li", {}, path)));
}

function showModel(model, revision) {
  const name = model.split("/").at(-1);
  setText(byId("model"), name);
  byId("model").title = revision ? `${model} @ ${revision}` : model;
  document.title = name;
}

/** Only what is new: a live region would be read out again. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
