// A conversation as a tree: answers to one message, and messages in one place, are siblings, of which one is chosen.
// What is read from a file or from the browser's store goes through `read`, which keeps known fields of known types.

export const ROOT = "root";
const ROLES = ["user", "assistant"];

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (n) => n.toString(16).padStart(2, "0")).join("");

export function newConversation(settings) {
  const now = Date.now();
  return { id: newId(), title: "", named: false, created: now, updated: now, settings: { ...settings }, nodes: {}, children: {}, chosen: {} };
}

export function add(conversation, parent, role, content, more = {}) {
  const node = { id: newId(), parent: parent ?? ROOT, role, content, time: Date.now(), ...more };
  conversation.nodes[node.id] = node;
  (conversation.children[node.parent] ??= []).push(node.id);
  conversation.chosen[node.parent] = node.id;
  conversation.updated = Date.now();
  if (!conversation.named && role === "user" && node.parent === ROOT) conversation.title = firstLine(content);
  return node;
}

export function remove(conversation, node) {
  const siblings = conversation.children[node.parent];
  siblings.splice(siblings.indexOf(node.id), 1);
  if (conversation.chosen[node.parent] === node.id) conversation.chosen[node.parent] = siblings.at(-1);
  delete conversation.nodes[node.id];
}

// The chosen nodes from the first on, as far as a node if one is given.
export function path(conversation, until = null) {
  if (until) {
    const nodes = [];
    for (let node = until; node; node = conversation.nodes[node.parent]) nodes.unshift(node);
    return nodes;
  }
  const nodes = [];
  for (let id = conversation.chosen[ROOT]; id; id = conversation.chosen[id]) nodes.push(conversation.nodes[id]);
  return nodes;
}

export const siblings = (conversation, node) => conversation.children[node.parent].map((id) => conversation.nodes[id]);

export const choose = (conversation, node) => {
  conversation.chosen[node.parent] = node.id;
};

export const title = (conversation) => conversation.title || "New conversation";

function firstLine(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

// ---- from outside

const text = (value) => (typeof value === "string" ? value : "");
const number = (value, otherwise) => (Number.isFinite(value) ? value : otherwise);
const FIELDS = {
  model: "string", step: "number", run: "string", finish: "string", error: "string", rating: "number", comment: "string",
  vote: "string", choice: "string", best: "boolean", seconds: "number", count: "number",
};

// Throws an Error that says what is wrong.
export function read(value) {
  if (typeof value !== "object" || value === null || typeof value.nodes !== "object" || value.nodes === null)
    throw new Error("a conversation without nodes");
  const conversation = newConversation(settingsOf(value.settings));
  conversation.id = text(value.id) || conversation.id;
  conversation.title = text(value.title).slice(0, 200);
  conversation.named = value.named === true;
  conversation.created = number(value.created, conversation.created);
  conversation.updated = number(value.updated, conversation.updated);
  for (const [id, node] of Object.entries(value.nodes)) conversation.nodes[id] = readNode(id, node, value.nodes);
  linkUp(conversation, value);
  return conversation;
}

function readNode(id, node, all) {
  if (!/^[0-9a-f]{1,64}$/.test(id)) throw new Error(`a message named ${JSON.stringify(id.slice(0, 80))}; expected hexadecimal digits`);
  if (!ROLES.includes(node?.role)) throw new Error(`a message of the role ${JSON.stringify(node?.role)}; expected user or assistant`);
  if (node.parent !== ROOT && !Object.hasOwn(all, node.parent)) throw new Error("a message whose parent is missing");
  const kept = { id, parent: node.parent, role: node.role, content: text(node.content), time: number(node.time, 0) };
  for (const [name, type] of Object.entries(FIELDS)) if (typeof node[name] === type) kept[name] = node[name];
  if (Array.isArray(node.tokens)) kept.tokens = node.tokens.map(readToken);
  return kept;
}

const readToken = (token) => ({
  text: text(token?.text), logprob: number(token?.logprob, 0),
  top: Array.isArray(token?.top) ? token.top.slice(0, 20).map((one) => [text(one?.[0]), number(one?.[1], 0)]) : [],
});

function linkUp(conversation, value) {
  const order = Object.values(conversation.nodes).sort((a, b) => a.time - b.time);
  for (const node of order) (conversation.children[node.parent] ??= []).push(node.id);
  for (const [parent, ids] of Object.entries(conversation.children)) {
    const chosen = value.chosen?.[parent];
    conversation.chosen[parent] = ids.includes(chosen) ? chosen : ids.at(-1);
  }
  const reached = new Set(), waiting = [ROOT];
  while (waiting.length) for (const id of conversation.children[waiting.pop()] ?? []) reached.add(id) && waiting.push(id);
  if (reached.size !== order.length) throw new Error("messages that are their own parents");
}

export function settingsOf(value) {
  const settings = {};
  for (const [name, one] of Object.entries(value ?? {}))
    if (["string", "number", "boolean"].includes(typeof one)) settings[name] = one;
  return settings;
}
