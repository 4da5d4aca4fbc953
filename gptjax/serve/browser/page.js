// The chat page: what is shown, what is asked of the server, and what a key or a button does.

import { asked, piece, request, stream } from "./client.js";
import { askWords, copyText, growing, openSettings, setTheme } from "./controls.js";
import { exportAll, importFile } from "./files.js";
import { icon } from "./icons.js";
import { remember, remembered, Store } from "./store.js";
import * as tokens from "./tokens.js";
import * as tree from "./tree.js";
import { editor, empty, fill, holding, listItem, message } from "./view.js";
import { prefer, rate } from "./votes.js";

const $ = (id) => document.getElementById(id);
const SAVE_MS = 2000; // between two saves of an answer that is being written
const state = {
  conversations: new Map(), // by id; a new one is in it when it has a message
  shown: null,
  models: [],
  answers: new Map(), // id of a conversation -> {node, abort}
  drawing: false, // an answer; behind: there is more of it by now
  behind: false,
};
const settings = remembered("settings", {});
const store = new Store((reason) => notice(`This browser keeps no history: ${reason}`), changedElsewhere);

const model = () => state.models.find(({ id }) => id === state.shown.settings.model) ?? state.models[0];
const look = () => ({
  feedback: document.body.dataset.feedback === "yes", probabilities: Boolean(settings.probabilities), completion: model()?.chat === false,
});

// ---- what is shown

function notice(words) {
  $("notice").firstElementChild.textContent = words;
  $("notice").hidden = !words;
}

function draw() {
  const view = look(), answer = state.answers.get(state.shown.id), nodes = tree.path(state.shown);
  $("log").classList.toggle("completion", view.completion);
  const held = holding($("log"));
  $("log").replaceChildren(...nodes.map((node) => message(state.shown, node, view, node === answer?.node)));
  held();
  if (!nodes.length) $("log").append(empty(model()));
  $("message").placeholder = view.completion ? "Text to go on from" : "Message";
  $("stop").hidden = !answer;
  $("send").hidden = Boolean(answer);
  $("probabilities").setAttribute("aria-pressed", String(view.probabilities));
  document.title = nodes.length ? `${tree.title(state.shown)} – gptjax` : "gptjax";
  drawModel();
}

function closeEditor() {
  $("log").querySelector(".editor")?.remove();
  draw();
  $("message").focus();
}

function drawModel() {
  const chosen = model();
  const options = state.models.map(({ id }) => Object.assign(document.createElement("option"), { value: id, textContent: id }));
  $("model").replaceChildren(...options);
  $("model").disabled = !state.models.length;
  if (!chosen) return;
  $("model").value = chosen.id;
  const words = [chosen.step === undefined ? "" : `step ${chosen.step.toLocaleString("en")}`, chosen.context_length ? `${chosen.context_length.toLocaleString("en")} tokens of context` : ""];
  $("about-model").textContent = words.filter(Boolean).join(" · ");
}

function drawList() {
  const all = [...state.conversations.values()].sort((a, b) => b.updated - a.updated);
  $("conversations").replaceChildren(...all.map((one) => listItem(one, one === state.shown, state.answers.has(one.id))));
}

function drawAll() {
  draw();
  drawList();
}

function show(conversation) {
  state.shown = conversation;
  notice("");
  tokens.hideTip();
  drawAll();
  $("log").scrollTop = $("log").scrollHeight;
  openSide(false);
}

function begin() {
  const { model: id, system, temperature, top_p, top_k, max_tokens, seed, repetition_penalty } = settings;
  show(tree.newConversation(tree.settingsOf({ model: id, system, temperature, top_p, top_k, max_tokens, seed, repetition_penalty })));
  $("message").focus();
}

const atEnd = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 60;

// The answer as far as it has come: at most once a frame, and in no more than a quarter of the time.
function drawAnswer(conversation, node) {
  if (state.shown !== conversation) return;
  state.behind = true;
  if (state.drawing) return;
  state.drawing = true;
  requestAnimationFrame(() => {
    state.behind = false;
    const start = performance.now(), follow = atEnd();
    const content = $("log").querySelector(`[data-node="${node.id}"] .content`);
    if (content) fill(content, node, look());
    if (follow) $("log").scrollTop = $("log").scrollHeight;
    setTimeout(() => {
      state.drawing = false;
      if (state.behind && state.answers.get(conversation.id)?.node === node) drawAnswer(conversation, node);
    }, 3 * (performance.now() - start));
  });
}

// ---- answers

async function answer(conversation, parent) {
  const chosen = model();
  if (!chosen) return notice("There is no model to ask: the server has not said which it has.");
  const node = tree.add(conversation, parent?.id, "assistant", "", { model: chosen.id, step: chosen.step, tokens: [] });
  const abort = new AbortController();
  state.answers.set(conversation.id, { node, abort });
  drawAll();
  $("log").scrollTop = $("log").scrollHeight;
  $("said").textContent = "The answer is being written.";
  const [path, body] = asked(chosen, { ...conversation.settings, probabilities: settings.probabilities }, parent ? tree.path(conversation, parent) : []);
  try {
    await receive(conversation, node, stream(path, body, abort.signal));
  } catch (error) {
    if (error.name === "AbortError") node.finish = "stopped";
    else failed(node, error);
  }
  state.answers.delete(conversation.id);
  ended(conversation, node);
}

async function receive(conversation, node, events) {
  let saved = performance.now(), first = null;
  for await (const event of events) {
    const choice = event.choices?.[0];
    if (choice) {
      const { text, tokens: more } = piece(choice);
      if (text || more.length) first ??= performance.now();
      node.content += text;
      node.tokens.push(...more);
      if (choice.finish_reason) node.finish = choice.finish_reason;
      drawAnswer(conversation, node);
    }
    if (event.usage) node.count = event.usage.completion_tokens;
    if (event.model) node.run = event.model;
    node.seconds = (performance.now() - (first ?? performance.now())) / 1000;
    if (performance.now() - saved > SAVE_MS) {
      saved = performance.now();
      store.save(conversation);
    }
  }
}

function failed(node, error) {
  node.error = error.message;
  if (error.status === 401) changeSettings(error.message);
}

function ended(conversation, node) {
  if (!state.conversations.has(conversation.id)) return; // deleted meanwhile
  const stopped = node.finish === "stopped";
  if (!node.content && stopped) tree.remove(conversation, node);
  keep(conversation);
  if (state.shown === conversation) {
    const follow = atEnd();
    draw();
    if (follow) $("log").scrollTop = $("log").scrollHeight;
    $("said").textContent = node.error ? "" : `${stopped ? "Stopped. " : ""}${node.content}`;
  }
  drawList();
  loadModels(); // a newer step may be served by now
}

function send(text) {
  const conversation = state.shown, nodes = tree.path(conversation), last = nodes.at(-1);
  if (state.answers.has(conversation.id) || !model()) return false;
  if (!text.trim() && !(look().completion && last)) return false;
  notice("");
  const words = look().completion ? text : text.trim();
  const parent = words ? tree.add(conversation, last?.id, "user", words) : last;
  keep(conversation);
  answer(conversation, parent);
  return true;
}

function keep(conversation) {
  state.conversations.set(conversation.id, conversation);
  store.save(conversation);
}

function stop() {
  state.answers.get(state.shown.id)?.abort.abort();
}

async function voted(vote) {
  const conversation = state.shown;
  try {
    await vote(conversation);
    notice("");
    keep(conversation);
    draw();
  } catch (error) {
    notice(`The vote was not taken: ${error.message}`);
    if (error.status === 401) changeSettings(error.message);
  }
}

// ---- buttons of messages and of the list

const ACTIONS = {
  copy: (node, button) => copyText(node.content, button),
  again: (node) => !state.answers.has(state.shown.id) && answer(state.shown, state.shown.nodes[node.parent]),
  earlier: (node) => step(node, -1),
  later: (node) => step(node, 1),
  good: (node) => voted((conversation) => rate(conversation, node, node.rating === 1 ? 0 : 1)),
  bad: (node) => voted((conversation) => rate(conversation, node, node.rating === -1 ? 0 : -1)),
  best: (node) => voted((conversation) => prefer(conversation, node)),
  comment: async (node) => {
    const words = await askWords("Comment", "What is good or bad about the answer", node.comment ?? "");
    if (words !== null) await voted((conversation) => rate(conversation, node, node.rating, words));
  },
  edit: (node, button) => {
    const content = button.closest(".message").querySelector(".content");
    content.replaceChildren(editor(node));
    content.querySelector("textarea").focus();
  },
  "cancel-edit": closeEditor,
  "send-edit": (node, button) => {
    const text = button.closest(".editor").querySelector("textarea").value;
    if (!text.trim() || state.answers.has(state.shown.id)) return;
    button.closest(".editor").remove();
    $("message").focus();
    const parent = tree.add(state.shown, node.parent, "user", text);
    keep(state.shown);
    answer(state.shown, parent);
  },
  open: (conversation) => show(conversation),
  rename: async (conversation) => {
    const words = await askWords("Rename", "Name of the conversation", tree.title(conversation));
    if (!words?.trim()) return;
    Object.assign(conversation, { title: words.trim(), named: true });
    keep(conversation);
    drawAll();
  },
  delete: async (conversation) => {
    if ((await askWords(`Delete “${tree.title(conversation)}”?`, null, "", "Delete")) === null) return;
    state.answers.get(conversation.id)?.abort.abort();
    state.conversations.delete(conversation.id);
    store.delete(conversation.id);
    conversation === state.shown ? begin() : drawList();
  },
};

function step(node, by) {
  const others = tree.siblings(state.shown, node);
  const other = others[others.indexOf(node) + by];
  if (!other) return;
  tree.choose(state.shown, other);
  keep(state.shown);
  draw();
  const arrows = $("log").querySelector(`[data-node="${other.id}"] .alternatives`);
  (arrows.querySelector(`[data-action="${by < 0 ? "earlier" : "later"}"]:enabled`) ?? arrows.querySelector(":enabled")).focus();
  $("said").textContent = other.content;
}

function acted(event) {
  const button = event.target.closest("button");
  if (button?.classList.contains("copy-code")) return copyText(button.closest(".code").querySelector("code").textContent, button);
  const node = state.shown.nodes[button?.closest("[data-node]")?.dataset.node];
  const conversation = state.conversations.get(button?.closest("[data-conversation]")?.dataset.conversation);
  ACTIONS[button?.dataset.action]?.(node ?? conversation, button);
}

// ---- the server, other tabs, files

async function loadModels() {
  try {
    state.models = (await (await request("v1/models")).json()).data ?? [];
    if (!state.models.length) notice("The server has no models.");
  } catch (error) {
    if (!state.models.length) notice(error.message);
    if (error.status === 401 && !$("settings").open) await changeSettings(error.message);
  }
  state.answers.has(state.shown.id) || $("log").querySelector(".message") ? drawModel() : draw();
}

async function changedElsewhere(id) {
  if (!store.database) return;
  const conversation = await store.get(id);
  if (state.answers.has(id)) return;
  conversation ? state.conversations.set(id, conversation) : state.conversations.delete(id);
  if (state.shown?.id === id) conversation ? show(conversation) : begin();
  else drawList();
}

async function changeSettings(keyWanted = "") {
  const changed = await openSettings({ ...settings, ...state.shown.settings, theme: settings.theme }, keyWanted);
  if (!changed) return;
  notice("");
  const { theme, ...others } = changed;
  for (const place of [settings, state.shown.settings]) {
    for (const name of ["system", "temperature", "top_p", "top_k", "max_tokens", "seed", "repetition_penalty"]) delete place[name];
    Object.assign(place, others);
  }
  settings.theme = theme;
  setTheme(theme);
  remember("settings", settings);
  if (state.conversations.has(state.shown.id)) keep(state.shown);
  await loadModels();
}

async function importAll() {
  try {
    const read = await importFile($("file").files[0]);
    for (const one of read) keep(one);
    if (read.length) show(read[0]);
  } catch (error) {
    notice(error.message);
  }
  $("file").value = "";
}

// ---- keys

function openSide(open) {
  $("side").classList.toggle("open", open);
  $("shade").hidden = !open;
  $("open-side").setAttribute("aria-expanded", String(open));
  if (open) $("new").focus();
}

function submit() {
  if (send($("message").value)) $("message").value = "";
  $("message").dispatchEvent(new Event("input"));
}

function pressed(event) {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "k" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    begin();
  } else if (event.key === "Escape") {
    if ($("side").classList.contains("open")) openSide(false);
    else if (event.target.closest(".editor")) closeEditor();
    else stop();
    tokens.hideTip();
  } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target.tagName === "TEXTAREA") {
    event.preventDefault();
    event.target === $("message") ? submit() : event.target.closest(".editor").querySelector('[data-action="send-edit"]').click();
  } else if (event.key === "ArrowUp" && event.target === $("message") && !$("message").value) {
    [...$("log").querySelectorAll(".message.user [data-action=edit]")].at(-1)?.click();
  }
}

function listen() {
  for (const place of document.querySelectorAll("[data-icon]")) place.replaceWith(icon(place.dataset.icon));
  $("composer").onsubmit = (event) => (event.preventDefault(), submit());
  $("message").oninput = () => growing($("message"));
  $("stop").onclick = stop;
  $("new").onclick = begin;
  $("open-side").onclick = () => openSide(true);
  $("close-side").onclick = $("shade").onclick = () => openSide(false);
  $("open-settings").onclick = () => changeSettings();
  $("export").onclick = () => exportAll(state.conversations.values());
  $("import").onclick = () => $("file").click();
  $("file").onchange = importAll;
  $("notice").lastElementChild.onclick = () => notice("");
  $("model").onchange = () => {
    settings.model = state.shown.settings.model = $("model").value;
    remember("settings", settings);
    draw();
  };
  $("probabilities").onclick = () => {
    settings.probabilities = !settings.probabilities;
    remember("settings", settings);
    tokens.hideTip();
    draw();
  };
  $("log").onclick = $("conversations").onclick = acted;
  tokens.listen($("log"), (place) => state.shown.nodes[place.closest("[data-node]").dataset.node]?.tokens, (words) => ($("said").textContent = words));
  document.onkeydown = pressed;
}

setTheme(settings.theme);
state.shown = tree.newConversation({});
listen();
for (const one of await store.open()) state.conversations.set(one.id, one);
begin();
await loadModels();
