/** What is to be said of an answer that has ended, in one line. */

import { language, say } from "./words.js";

const shown = (value, digits) => value.toLocaleString(language, { maximumFractionDigits: digits });

export function factsOf(end) {
  if (end.kind === "stopped") return say("Stopped.");
  if (end.kind !== "whole") return "";
  return [...lengthFacts(end), ...timeFacts(end)].join(" · ");
}

function lengthFacts({ finish, tokens }) {
  if (tokens === undefined) return [];
  const values = { tokens: shown(tokens, 0) };
  return [finish === "length" ? say("Cut at {tokens} tokens", values) : say("{tokens} tokens", values)];
}

function timeFacts({ rate, firstAfter }) {
  const facts = [];
  if (rate) facts.push(say("{rate} tokens/s", { rate: shown(rate, rate < 10 ? 1 : 0) }));
  if (firstAfter !== undefined) facts.push(say("first after {seconds} s", { seconds: shown(firstAfter, 2) }));
  return facts;
}
