// Messages as elements of the page. Each button names its action; page.js does it.

import { icon } from "./icons.js";
import { element, render } from "./markdown.js";
import { extend, legend, tokenView } from "./tokens.js";
import { siblings, title } from "./tree.js";

const ENDS = { length: "ended at the most tokens", stopped: "stopped by you", content_filter: "ended by a filter" };

export function button(action, picture, label, more = {}) {
  return element("button", { type: "button", class: "icon", "data-action": action, "aria-label": label, title: label, ...more }, icon(picture));
}

// view: {feedback, probabilities, completion}; answering: whether the node is being written.
export function message(conversation, node, view, answering) {
  const who = node.role === "user" ? (view.completion ? "Your text" : "You") : (view.completion ? "Continuation" : "Answer");
  const content = element("div", { class: "content" });
  const whole = element("article", { class: `message ${node.role}`, "data-node": node.id, "aria-label": who }, content);
  fill(content, node, view);
  if (node.error) whole.append(element("p", { class: "bad error", role: "alert" }, node.error));
  if (answering) whole.setAttribute("aria-busy", "true");
  else whole.append(foot(conversation, node, view));
  return whole;
}

// Writes the content of a node; where tokens are shown, those that are new alone.
export function fill(content, node, view) {
  const byToken = node.role === "assistant" && view.probabilities && node.tokens?.length;
  const tokens = content.querySelector(".tokens");
  if (byToken && tokens) extend(tokens, node.tokens);
  else if (byToken) content.replaceChildren(tokenView(node.tokens), legend());
  else if (node.role === "user" || view.completion) content.replaceChildren(element("div", { class: "plain" }, node.content));
  else content.replaceChildren(render(node.content));
}

function foot(conversation, node, view) {
  const bar = element("div", { class: "foot" });
  const others = siblings(conversation, node);
  if (others.length > 1) bar.append(alternatives(others, node));
  bar.append(button("copy", "copy", "Copy"));
  if (node.role === "user") bar.append(button("edit", "edit", "Edit and send again"));
  else {
    bar.append(button("again", "again", node.error ? "Try again" : "Another answer"));
    if (view.feedback && !node.error && node.content.trim() && !view.completion) bar.append(...votes(node, others));
    bar.append(element("span", { class: "about" }, about(node)));
  }
  return bar;
}

function alternatives(others, node) {
  const at = others.indexOf(node);
  const ends = [at === 0, at === others.length - 1].map((end) => (end ? { disabled: "" } : {}));
  const place = element("span", { class: "place" }, `${at + 1}/${others.length}`);
  place.setAttribute("aria-label", `${at + 1} of ${others.length}`);
  return element("span", { class: "alternatives" }, button("earlier", "left", "The one before", ends[0]), place, button("later", "right", "The next one", ends[1]));
}

function votes(node, others) {
  const pressed = (is) => ({ "aria-pressed": String(Boolean(is)) });
  const buttons = [
    button("good", "up", "Good answer", pressed(node.rating === 1)),
    button("bad", "down", "Bad answer", pressed(node.rating === -1)),
  ];
  if (others.filter((other) => other.content.trim() && !other.error).length > 1)
    buttons.push(button("best", "best", "Better than the other answers", pressed(node.best)));
  if (node.rating) buttons.push(element("button", { type: "button", class: "words-button", "data-action": "comment" }, node.comment ? "Change the comment" : "Comment"));
  return buttons;
}

export function about(node) {
  const words = [node.run ?? node.model];
  if (node.step !== undefined) words.push(`step ${node.step.toLocaleString("en")}`);
  if (node.count) words.push(`${node.count} tokens`);
  if (node.count > 1 && node.seconds > 0.1) words.push(`${((node.count - 1) / node.seconds).toPrecision(3)} tokens/s`); // after the first
  if (ENDS[node.finish]) words.push(ENDS[node.finish]);
  return words.filter(Boolean).join(" · ");
}

export function editor(node) {
  const field = element("textarea", { rows: "3", "aria-label": "Message" });
  field.value = node.content;
  const cancel = element("button", { type: "button", "data-action": "cancel-edit" }, "Cancel");
  const send = element("button", { type: "button", class: "main", "data-action": "send-edit" }, "Send");
  return element("div", { class: "editor" }, field, element("div", { class: "buttons" }, cancel, send));
}

export function listItem(conversation, current, answering) {
  const open = element("button", { type: "button", class: "open", "data-action": "open", title: title(conversation) }, title(conversation));
  if (current) open.setAttribute("aria-current", "true");
  const item = element("li", { "data-conversation": conversation.id, class: answering ? "answering" : "" }, open);
  item.append(button("rename", "edit", `Rename ${title(conversation)}`), button("delete", "bin", `Delete ${title(conversation)}`));
  return item;
}

export function empty(model) {
  const words = !model ? "" : model.chat ? "Ask something." : "This model continues text: it was not trained on conversations. Write a beginning.";
  return element("div", { class: "empty" }, element("h1", {}, model ? (model.chat ? "Talk to" : "Write with") + ` ${model.id}` : "gptjax"), element("p", { class: "soft" }, words));
}

// Drawing makes messages anew. A function that gives back to them the focus, and an editor with what was typed in it; where
// the button that had the focus is gone, the message field has it.
export function holding(log) {
  const focused = document.activeElement.closest("#log [data-action], #log .tokens");
  const open = log.querySelector(".editor");
  const [focusedIn, openIn] = [focused, open].map((one) => one?.closest("[data-node]").dataset.node);
  const action = focused?.dataset.action ? `[data-action="${focused.dataset.action}"]` : ".tokens";
  const typing = open?.contains(document.activeElement) && document.activeElement;
  return () => {
    if (open) log.querySelector(`[data-node="${openIn}"] .content`)?.replaceChildren(open);
    if (typing) typing.focus();
    else if (focused) (log.querySelector(`[data-node="${focusedIn}"] ${action}`) ?? document.getElementById("message")).focus();
  };
}
