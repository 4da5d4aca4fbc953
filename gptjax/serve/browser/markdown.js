// The part of Markdown that models write, as nodes of the page. What a model says becomes text nodes and elements of a
// fixed list, never HTML, so that nothing in it can run. Pictures are shown as links: to fetch one would tell its host.

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`]*?)\s*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])( *\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const MOST_DEPTH = 12; // of lists and quotes in each other: deeper ones are shown as text
const MOST_LETTERS = 50000; // of a paragraph: longer ones are shown as they are

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function render(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
  return fragment;
}

function blocks(lines, depth) {
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    const [node, next] = block(lines, at, depth);
    if (node) nodes.push(node);
    at = next;
  }
  return nodes;
}

// [a node or null, the line after it]
function block(lines, at, depth) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  if (FENCE.test(line)) return code(lines, at);
  const heading = HEADING.exec(line);
  if (heading) return [element(`h${Math.min(6, heading[1].length + 2)}`, {}, ...inline(heading[2])), at + 1];
  if (RULE.test(line)) return [element("hr"), at + 1];
  if (isTable(lines, at)) return table(lines, at);
  if (depth < MOST_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (depth < MOST_DEPTH && line.startsWith(">")) return quote(lines, at, depth);
  return paragraph(lines, at);
}

function code(lines, at) {
  const [, indent, fence, language] = FENCE.exec(lines[at]);
  const kept = [];
  let next = at + 1;
  for (; next < lines.length; next++) {
    const line = lines[next].trim();
    if (line.startsWith(fence) && [...line].every((letter) => letter === fence[0])) break;
    kept.push(lines[next].startsWith(indent) ? lines[next].slice(indent.length) : lines[next]);
  }
  const copy = element("button", { type: "button", class: "copy-code" }, "Copy");
  const head = element("div", { class: "code-head" }, element("span", {}, language || "text"), copy);
  const body = element("pre", { tabindex: "0" }, element("code", {}, kept.join("\n")));
  return [element("div", { class: "code" }, head, body), next + 1];
}

const isTable = (lines, at) => lines[at].includes("|") && at + 1 < lines.length && lines[at + 1].includes("-")
  && DIVIDER.test(lines[at + 1]) && cells(lines[at]).length === cells(lines[at + 1]).length;

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}

function table(lines, at) {
  const sides = cells(lines[at + 1]).map((cell) => (/^:-+:$/.test(cell) ? "center" : cell.endsWith(":") ? "right" : "left"));
  const row = (line, tag) => {
    const words = cells(line);
    const count = Math.max(sides.length, words.length); // cells that have no head are shown too
    return element("tr", {}, ...Array.from({ length: count }, (_, i) => element(tag, { class: sides[i] ?? "left" }, ...inline(words[i] ?? ""))));
  };
  const body = element("tbody");
  let next = at + 2;
  for (; next < lines.length && lines[next].includes("|") && lines[next].trim(); next++) body.append(row(lines[next], "td"));
  const whole = element("table", {}, element("thead", {}, row(lines[at], "th")), body);
  return [element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "table" }, whole), next];
}

// Items of one list: same kind, same indentation; what is indented further belongs to the item before it.
function list(lines, at, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const node = element(ordered ? "ol" : "ul", ordered && parseInt(mark) !== 1 ? { start: parseInt(mark) } : {});
  let next = at;
  while (next < lines.length) {
    const item = ITEM.exec(lines[next]);
    if (!item || item[1].length !== indent.length || /\d/.test(item[2]) !== ordered) break;
    const inner = [item[3]];
    const deeper = indent.length + 2;
    for (next++; next < lines.length; next++) {
      const line = lines[next];
      const follows = !line.trim() ? next + 1 < lines.length && indentation(lines[next + 1]) >= deeper
        : indentation(line) >= deeper || (!ITEM.test(line) && lines[next - 1].trim() && !FENCE.test(line) && !HEADING.test(line));
      if (!follows) break;
      inner.push(line.slice(Math.min(indentation(line), item[0].length - item[3].length)));
    }
    const parts = blocks(inner, depth + 1);
    if (parts[0]?.tagName === "P") parts.splice(0, 1, ...parts[0].childNodes);
    node.append(element("li", {}, ...parts));
    while (next + 1 < lines.length && !lines[next].trim() && ITEM.exec(lines[next + 1])?.[1].length === indent.length) next++;
  }
  return [node, next];
}

const indentation = (line) => line.length - line.trimStart().length;

function quote(lines, at, depth) {
  const inner = [];
  let next = at;
  for (; next < lines.length && lines[next].startsWith(">"); next++) inner.push(lines[next].replace(/^> ?/, ""));
  return [element("blockquote", {}, ...blocks(inner, depth + 1)), next];
}

function paragraph(lines, at) {
  const kept = [lines[at]];
  let next = at + 1;
  for (; next < lines.length; next++) {
    const line = lines[next];
    if (!line.trim() || FENCE.test(line) || HEADING.test(line) || ITEM.test(line) || line.startsWith(">") || isTable(lines, next)) break;
    kept.push(line);
  }
  return [element("p", {}, ...inline(kept.join("\n").trim())), next];
}

// ---- within a line

// Lengths are bounded, or many marks that nothing closes would each be followed to the end of the text.
const INLINE = [
  [/^(`+)([^`]|[^`][\s\S]{0,2000}?[^`])\1(?!`)/, (found) => element("code", {}, found[2].replace(/\n/g, " "))],
  [/^\*\*(?=\S)([\s\S]{0,2000}?\S)\*\*/, (found) => element("strong", {}, ...inline(found[1]))],
  [/^__(?=\S)([\s\S]{0,2000}?\S)__(?!\w)/, (found) => element("strong", {}, ...inline(found[1])), true],
  [/^\*(?=[^\s*])([^*]{0,2000}?[^\s*])\*(?!\*)/, (found) => element("em", {}, ...inline(found[1]))],
  [/^_(?=[^\s_])([^_]{0,2000}?[^\s_])_(?!\w)/, (found) => element("em", {}, ...inline(found[1])), true],
  [/^~~(?=\S)([\s\S]{0,2000}?\S)~~/, (found) => element("del", {}, ...inline(found[1]))],
  [/^!?\[([^\]]{0,2000})\]\(\s*<?([^\s)>]{1,2000})>?(?:\s+"[^"]{0,500}")?\s*\)/, (found) => link(found[1], found[2], found[0])],
  [/^https?:\/\/[^\s<>"'`)\]]*[^\s<>"'`)\].,:;!?]/, (found) => link(found[0], found[0], found[0]), true],
  [/^\\([\\`*_{}[\]()#+.!|~<>-])/, (found) => document.createTextNode(found[1])],
  [/^(?: {2,}|\\)\n/, () => element("br")],
];

function inline(text) {
  if (text.length > MOST_LETTERS) return [document.createTextNode(text)];
  const nodes = [];
  let plain = "";
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  for (let at = 0; at < text.length; ) {
    const rest = text.slice(at);
    // A letter or digit begins nothing but an address, and before a letter "_" and an address begin nothing.
    const found = /^[\w\s]/.test(rest) && !/^(_|http| {2,}\n)/.test(rest) ? null : match(rest, /\w$/.test(text.slice(at - 1, at)));
    if (found) {
      flush();
      nodes.push(found.node);
      at += found.length;
    } else plain += text[at++];
  }
  flush();
  return nodes;
}

function match(rest, inWord) {
  for (const [pattern, make, startsWord] of INLINE) {
    const found = startsWord && inWord ? null : pattern.exec(rest);
    if (found) return { node: make(found), length: found[0].length };
  }
  return null;
}

// Addresses of the web alone: javascript:, data: and the like stay text.
function link(words, address, whole) {
  if (!/^https?:\/\//i.test(address)) return document.createTextNode(whole);
  return element("a", { href: address, rel: "noopener noreferrer nofollow", target: "_blank", title: address }, words || address);
}
