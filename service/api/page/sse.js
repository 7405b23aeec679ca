/** Server-sent events, read: bytes become events (WHATWG HTML, "Interpreting an event stream"; no ids, no retries). */

/** The events of a stream of bytes that may be cut anywhere. One that no blank line ends is dropped. */
export async function* readEvents(body) {
  let name = "";
  let data = [];
  for await (const line of readLines(body)) {
    const [field, value] = parted(line);
    if (line === "") {
      if (data.length) yield { name, data: data.join("\n") };
      [name, data] = ["", []];
    } else if (field === "event") {
      name = value;
    } else if (field === "data") {
      data.push(value);
    }
  }
}

function parted(line) {
  const colon = line.indexOf(":");
  if (colon < 0) return [line, ""];
  return [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "")];
}

async function* readLines(body) {
  let rest = "";
  for await (const text of readText(body)) {
    // A carriage return at the end stays: its line feed may be the next byte.
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    yield* lines;
  }
  if (rest.endsWith("\r")) yield rest.slice(0, -1);
}

async function* readText(body) {
  const reader = body.getReader(); // not every browser iterates a stream by itself
  const decoder = new TextDecoder(); // which keeps half a character until the other half has come
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      yield decoder.decode(part.value, { stream: true });
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading wants no more; of a broken stream there is no more
  }
}
