/** A number that a request may carry, with the service's own default, limits and words for it. */

import { element } from "./dom.js";
import { say } from "./words.js";

/** The part of a field's JSON schema that is not null, if it is a number; else undefined. */
export function numberIn(schema) {
  const parts = schema.anyOf ?? [schema];
  return parts.find(({ type }) => type === "integer" || type === "number");
}

/** A labelled input for the field `name`. */
export function numberField(name, schema) {
  const limits = numberIn(schema);
  const input = element("input", {
    type: "number",
    id: `setting-${name}`,
    "data-name": name,
    min: limits.minimum ?? limits.exclusiveMinimum,
    max: greatest(limits),
    step: limits.type === "integer" ? "1" : "any",
    placeholder: schema.default ?? say("unset"),
    "aria-describedby": `hint-${name}`,
  });
  input.addEventListener("input", () => refuseExcluded(input, limits));
  const hint = element("small", { id: `hint-${name}` }, schema.description ?? "");
  return element("label", { for: input.id }, element("span", {}, name), input, hint);
}

function greatest({ maximum, exclusiveMaximum, type }) {
  const limit = maximum ?? exclusiveMaximum;
  return type === "integer" ? Math.min(limit, Number.MAX_SAFE_INTEGER) : limit;
}

/** HTML has no limit that is itself excluded. */
function refuseExcluded(input, { exclusiveMinimum, exclusiveMaximum }) {
  const isExcluded = input.value !== "" && [exclusiveMinimum, exclusiveMaximum].includes(Number(input.value));
  input.setCustomValidity(isExcluded ? say("{value} itself is not allowed.", { value: input.value }) : "");
}
