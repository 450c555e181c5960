// The text of an answer as elements: paragraphs, lists and code. Markup in it stays text.

import { h } from "./dom.js";

/** Elements for a text that may still grow. */
export function rendered(text) {
  const blocks = [];
  text.split("```").forEach((part, i) => {
    if (i % 2) blocks.push(h("pre", { tabIndex: 0 }, h("code", {}, part.replace(/^[\w+-]*\n/, ""))));
    else blocks.push(...prose(part));
  });
  return blocks.length ? blocks : [h("p")];
}

/** Paragraphs and lists. */
function prose(text) {
  return text
    .split(/\n{2,}/)
    .filter((block) => block.trim())
    .map((block) => {
      const lines = block.trim().split("\n");
      if (!lines.every((line) => /^\s*([-*•]|\d+[.)])\s/.test(line))) return h("p", {}, ...inline(block.trim()));
      const items = lines.map((line) => h("li", {}, ...inline(line.replace(/^\s*([-*•]|\d+[.)])\s+/, ""))));
      return h(/^\s*\d/.test(lines[0]) ? "ol" : "ul", {}, ...items);
    });
}

function inline(text) {
  return text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));
}
