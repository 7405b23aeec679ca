/** One answer at a time: asks, fills the turn as pieces come, measures, and can be stopped. */

import { Problem, ask } from "./service.js";

export class Answering {
  #running = null;

  get busy() {
    return this.#running !== null;
  }

  /** Fill `turn` until it has an `end`; `changed` is called after each piece. An earlier answer stays until a new one begins. */
  async run(turn, request, key, changed) {
    const running = new AbortController();
    const watch = new Stopwatch();
    this.#running = running;
    turn.end = null;
    try {
      for await (const piece of ask(request, { key, signal: running.signal })) {
        fill(turn, piece, watch);
        changed();
      }
    } catch (error) {
      turn.end = running.signal.aborted ? { kind: "stopped" } : { kind: "failed", problem: { ...Problem.from(error) } };
    }
    this.#running = null;
  }

  /** Close the connection, by which the service's work ends; what came so far stays. */
  stop() {
    this.#running?.abort();
  }
}

function fill(turn, piece, watch) {
  if (piece.delta !== undefined) {
    turn.answer = (watch.begun ? turn.answer : "") + piece.delta;
    watch.lap();
  } else {
    turn.answer = piece.text ?? turn.answer;
    turn.end = { kind: "whole", finish: piece.finish, tokens: piece.tokens, ...watch.measured(piece.tokens) };
  }
}

const LEAST_MEASURED_SECONDS = 0.25; // in less, all came at once

class Stopwatch {
  #start = performance.now();
  #first = null;
  #latest = null;

  get begun() {
    return this.#first !== null;
  }

  lap() {
    this.#latest = performance.now();
    this.#first ??= this.#latest;
  }

  /** Seconds to the first text, and tokens a second from there on. */
  measured(tokens) {
    if (!this.begun) return {};
    const seconds = (this.#latest - this.#first) / 1000;
    const rate = tokens > 1 && seconds >= LEAST_MEASURED_SECONDS ? (tokens - 1) / seconds : null;
    return { firstAfter: (this.#first - this.#start) / 1000, rate };
  }
}
