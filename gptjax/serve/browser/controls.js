// Dialogs, the clipboard, downloads and colours.

import { key } from "./client.js";

const $ = (id) => document.getElementById(id);
const TEXTS = ["system"], NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed", "repetition_penalty"];

// A promise of whether a dialog was saved.
function saved(dialog, cancel) {
  return new Promise((resolve) => {
    let yes = false;
    dialog.querySelector("form").onsubmit = () => (yes = true);
    cancel.onclick = () => dialog.close();
    dialog.onclose = () => resolve(yes);
    dialog.showModal();
  });
}

// The settings as they were changed, without those that are empty; null: cancelled. keyWanted: why the server wants a key.
export async function openSettings(settings, keyWanted) {
  const fields = $("settings").querySelector("form").elements;
  for (const name of [...TEXTS, ...NUMBERS]) fields[name].value = settings[name] ?? "";
  fields.theme.value = settings.theme ?? "auto";
  fields.key.value = key.get();
  $("key-wanted").textContent = keyWanted;
  $("key-wanted").hidden = !keyWanted;
  $("key-field").hidden = !keyWanted && !key.get();
  const done = saved($("settings"), $("cancel-settings"));
  if (keyWanted) fields.key.focus();
  if (!(await done)) return null;
  key.set(fields.key.value.trim());
  const changed = { theme: fields.theme.value };
  for (const name of TEXTS) if (fields[name].value.trim()) changed[name] = fields[name].value;
  for (const name of NUMBERS) if (fields[name].value !== "") changed[name] = Number(fields[name].value);
  return changed;
}

// What was typed; null: cancelled. label null: nothing is typed, and the answer to yes is "".
export async function askWords(title, label, value, yes = "Save") {
  const field = $("ask").querySelector("input");
  $("ask-title").textContent = title;
  $("ask-label").textContent = label ?? "";
  field.closest("label").hidden = label === null;
  field.value = value;
  $("ask-yes").textContent = yes;
  const done = saved($("ask"), $("ask-cancel"));
  if (label !== null) field.select();
  return (await done) ? field.value : null;
}

export function setTheme(theme) {
  document.documentElement.dataset.theme = ["light", "dark"].includes(theme) ? theme : "auto";
}

export function growing(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

// Says on the button that it was done. Outside https and this machine, browsers have no clipboard but the old command.
export async function copyText(text, button) {
  const before = button.title || button.textContent;
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyByCommand(text);
    say(button, "Copied");
  } catch {
    say(button, "Not copied");
  }
  setTimeout(() => say(button, before), 1500);
}

function copyByCommand(text) {
  const field = document.createElement("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("the browser did not copy");
}

function say(button, words) {
  if (button.classList.contains("icon")) {
    button.title = words;
    button.setAttribute("aria-label", words);
  } else button.textContent = words;
  if (/opied/.test(words)) $("said").textContent = words;
}

export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
