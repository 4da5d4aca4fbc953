// What a reader thinks of answers, sent to the server. The server keeps one vote for each name (id) that it gave.

import { messages, request } from "./client.js";
import { path, siblings } from "./tree.js";

async function send(conversation, node, vote) {
  const before = messages(conversation.settings, path(conversation, conversation.nodes[node.parent]));
  const response = await request("v1/feedback", { model: node.model, messages: before, answer: node.content, ...vote });
  return (await response.json()).id;
}

const named = (id) => (id ? { id } : {});

// rating: 1 good, -1 bad, 0 takes the vote back.
export async function rate(conversation, node, rating, comment = node.comment) {
  const words = comment && rating ? { comment } : {};
  const id = await send(conversation, node, { rating, ...named(node.vote), ...words });
  Object.assign(node, { vote: id, rating, comment: rating ? comment : "" });
}

// That an answer is better than its siblings.
export async function prefer(conversation, node) {
  const all = siblings(conversation, node);
  const over = all.filter((other) => other.content.trim() && !other.error && other.content !== node.content);
  if (!over.length) throw new Error("the other answers say the same.");
  const id = await send(conversation, node, { over: over.map(({ content }) => content), ...named(all.find(({ choice }) => choice)?.choice) });
  for (const other of all) Object.assign(other, { best: other === node, choice: id });
}
