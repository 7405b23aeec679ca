/** The service's HTTP interface as the page needs it. Addresses are relative to the page. */

import { readEvents } from "./sse.js";
import { say } from "./words.js";

export const UNAUTHORIZED = 401;
const HEALTH_PATIENCE_MS = 10_000;
const NOT_IN_A_HEADER = /[^\x20-\x7e]/; // no service knows such a key: none could be told it

/** Why there is no answer: a problem document's fields, and after how many seconds to ask again. */
export class Problem extends Error {
  constructor({ detail, code, status = 0, field, retryAfter = null }) {
    super(asText(detail));
    Object.assign(this, { detail: asText(detail), code: asText(code), status, field: asText(field), retryAfter });
  }

  static from(error) {
    if (error instanceof Problem) return error;
    return new Problem({ code: "unreachable", detail: say("The service cannot be reached, or the connection broke.") });
  }
}

/** The pieces of an answer: `{delta}` for text, then `{finish, text, tokens}`. Throws a Problem; stops with `signal`. */
export async function* ask(body, { key, signal }) {
  if (NOT_IN_A_HEADER.test(key ?? "")) {
    throw new Problem({ status: UNAUTHORIZED, detail: say("The service does not know this API key.") });
  }
  const response = await fetch("v1/chat", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) },
    body: JSON.stringify({ ...body, stream: true }),
    cache: "no-store",
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const type = response.headers.get("Content-Type") ?? "";
  if (!type.startsWith("text/event-stream")) {
    throw new Problem({ code: "stranger", detail: say("What answered here is not the chat service ({type}).", { type }) });
  }
  yield* readAnswer(response.body);
}

/** As `ask`, from the body of its response. Throws a Problem if the last event does not come. */
export async function* readAnswer(body) {
  for await (const { name, data } of readEvents(body)) {
    if (data === "[DONE]") break;
    const event = parsed(data);
    if (name === "error") throw new Problem({ ...event, detail: event.detail ?? data });
    if (event.delta) yield { delta: event.delta };
    if (event.finish_reason) {
      yield { finish: event.finish_reason, text: event.response, tokens: event.usage?.completion_tokens };
      return;
    }
  }
  throw new Problem({ code: "cut", detail: say("The connection ended before the answer did.") });
}

function parsed(data) {
  try {
    const event = JSON.parse(data);
    if (event && typeof event === "object") return event;
  } catch {
    // said below
  }
  throw new Problem({ code: "garbled", detail: say("Something on the way garbled the answer.") });
}

/** What a proxy on the way answers has a form of its own: nothing in it need be text. */
function asText(value) {
  return typeof value === "string" ? value : JSON.stringify(value ?? "").replace(/^""$/, "");
}

async function refusal(response) {
  const problem = (await response.json().catch(() => null)) ?? {};
  return new Problem({
    ...problem,
    detail: problem.detail ?? `HTTP ${response.status} ${response.statusText}`,
    status: response.status,
    retryAfter: seconds(response.headers.get("Retry-After")),
  });
}

/** Whether the model answers: the body of `GET /`, and when to look again if it does not. */
export async function health() {
  const response = await fetch("./", { cache: "no-store", signal: AbortSignal.timeout(HEALTH_PATIENCE_MS) });
  const body = await response.json();
  if (typeof body.status !== "string") throw new Error("not this service");
  return { ...body, retryAfter: seconds(response.headers.get("Retry-After")) };
}

/** The service's own description of a chat request's fields. */
export async function describe() {
  const document = await (await fetch("openapi.json")).json();
  return {
    fields: document.components.schemas.ChatRequest.properties,
    asksForKey: Boolean(document.paths["/v1/chat"].post.security),
  };
}

function seconds(retryAfter) {
  return /^\d+$/.test(retryAfter ?? "") ? Number(retryAfter) : null;
}
