/** An answer's text as blocks: fenced code, and the paragraphs between. */

const FENCE = /^(\s*)(`{3,}|~{3,})([^`]*)$/;

/** Blocks `{kind: "text" | "code", text, language}` in order. A fence that is not closed yet holds all that follows. */
export function blocksOf(text) {
  const blocks = [];
  let open = null;
  for (const line of text.split("\n")) {
    const fence = FENCE.exec(line);
    if (open) {
      if (closes(fence, open.mark)) open = null;
      else open.block.lines.push(line.startsWith(open.indent) ? line.slice(open.indent.length) : line);
    } else if (fence) {
      open = { indent: fence[1], mark: fence[2], block: { kind: "code", language: fence[3].trim(), lines: [] } };
      blocks.push(open.block);
    } else {
      addToParagraph(blocks, line);
    }
  }
  return blocks.map(({ kind, language, lines }) => ({ kind, language, text: lines.join("\n") }));
}

function closes(fence, mark) {
  return fence !== null && fence[2].startsWith(mark) && !fence[3].trim();
}

function addToParagraph(blocks, line) {
  const last = blocks.at(-1);
  if (!line.trim()) {
    if (last?.kind === "text") last.isOver = true;
  } else if (last?.kind === "text" && !last.isOver) {
    last.lines.push(line);
  } else {
    blocks.push({ kind: "text", language: "", lines: [line] });
  }
}
