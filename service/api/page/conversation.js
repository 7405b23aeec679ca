/**
 * Questions and answers in turn, and what of them the service is told.
 *
 * A turn is `{question, answer, end}`. `end` is null while it is being answered, then `{kind: "whole", ...}`,
 * `{kind: "stopped"}` or `{kind: "failed", problem}`.
 */

const CONTROL = /[\0-\x08\x0b\x0c\x0e-\x1f\x7f]/g;
const HALF_A_PAIR = /\p{Surrogate}/gu; // whole pairs are other characters to a regular expression with u

/** Text as the service takes it: what a terminal's output or a model may hold besides would have it refused. */
export function sendable(text) {
  return text.replace(CONTROL, "").replace(HALF_A_PAIR, "\ufffd");
}

export class Conversation {
  /** `saved` is what `toJSON` gave. `firstSent`: the turns before it are shown, and not sent any more. */
  constructor(saved = {}) {
    this.turns = (saved.turns ?? []).map(settled);
    this.firstSent = saved.firstSent ?? 0;
  }

  get last() {
    return this.turns.at(-1);
  }

  add(question) {
    this.turns.push({ question, answer: "", end: null });
  }

  /** Another question in place of the last one, whose answer goes with it. */
  replaceLast(question) {
    this.turns.pop();
    this.firstSent = Math.min(this.firstSent, this.turns.length);
    this.add(question);
  }

  /**
   * The turns before the last one. An answer that was stopped or broke is told as far as it was read; a question that
   * nobody answered is not told at all: templates want question and answer in turn.
   */
  history() {
    return this.#told().flatMap(({ question, answer }) => [
      { role: "user", content: sendable(question) },
      { role: "assistant", content: sendable(answer) },
    ]);
  }

  get canLeaveOut() {
    return this.#told().length > 0;
  }

  /** Tell the service only of the newer half from now on. */
  leaveOutOldest() {
    const told = this.#told();
    const firstKept = told[Math.ceil(told.length / 2)] ?? this.last;
    this.firstSent = this.turns.indexOf(firstKept);
  }

  toJSON() {
    return { turns: this.turns, firstSent: this.firstSent };
  }

  #told() {
    return this.turns.slice(this.firstSent, -1).filter(({ answer }) => sendable(answer).trim());
  }
}

/** A turn of a page that is gone: it is not answered any more, and nothing counts down for it. */
function settled(turn) {
  const end = turn.end ?? { kind: "stopped" };
  if (end.kind !== "failed") return { ...turn, end };
  return { ...turn, end: { ...end, problem: { ...end.problem, retryAfter: null } } };
}
