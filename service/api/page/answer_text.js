/** Shows an answer that grows: only what changed is touched, so that a long answer stays fluid and selectable. */

import { blocksOf } from "./blocks.js";
import { copyButton } from "./clipboard.js";
import { element } from "./dom.js";
import { say } from "./words.js";

const LONGEST_LANGUAGE = 24;

export class AnswerText {
  #root;
  #shown = [];

  constructor(root) {
    this.#root = root;
  }

  /** Returns the blocks, of which the last one may still grow. */
  show(text) {
    const blocks = blocksOf(text);
    blocks.forEach((block, at) => this.#place(at, block));
    this.#shown.splice(blocks.length).forEach(({ node }) => node.remove());
    return blocks;
  }

  #place(at, block) {
    const shown = this.#shown[at];
    if (shown?.kind === block.kind && shown.language === block.language) return grow(shown, block.text);
    const made = { ...block, ...(block.kind === "code" ? codeNode(block) : paragraphNode(block)) };
    if (shown) shown.node.replaceWith(made.node);
    else this.#root.append(made.node);
    this.#shown[at] = made;
  }
}

function grow(shown, text) {
  if (text === shown.text) return;
  if (text.startsWith(shown.text)) shown.content.appendData(text.slice(shown.text.length));
  else shown.content.data = text;
  shown.text = text;
}

function paragraphNode({ text }) {
  const content = document.createTextNode(text);
  return { content, node: element("p", { dir: "auto" }, content) };
}

function codeNode({ text, language }) {
  const content = document.createTextNode(text);
  const label = language.slice(0, LONGEST_LANGUAGE);
  const pre = element("pre", { tabindex: "0", dir: "ltr", role: "group", "aria-label": say("Code") }, element("code", {}, content));
  const caption = element("figcaption", {}, element("span", {}, label), copyButton("Copy code", () => content.data));
  return { content, node: element("figure", { class: "code" }, caption, pre) };
}
