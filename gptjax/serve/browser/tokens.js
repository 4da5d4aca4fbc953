// An answer token by token: coloured by surprise (minus the log-probability, in nats), with what else the model had in mind.

import { element } from "./markdown.js";

const LEVELS = [0.1, 0.7, 1.6, 3, 5]; // nats: the probabilities 0.9, 0.5, 0.2, 0.05 and 0.007

export const level = (logprob) => LEVELS.filter((least) => -logprob >= least).length;

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return share >= 99.95 ? "100%" : share >= 0.1 ? `${share.toFixed(1)}%` : `${share.toExponential(0)}%`;
};

// A server names a token that is part of a character by its bytes. The character is shown at the last of its tokens.
const BYTES = /^bytes:((?:\\x[0-9a-f]{2})+)$/;

function spelled(decoder, text) {
  const found = BYTES.exec(text);
  if (!found) return decoder.decode() + text;
  return decoder.decode(Uint8Array.from(found[1].slice(2).split("\\x"), (digits) => parseInt(digits, 16)), { stream: true });
}

const visible = (text) => JSON.stringify(text).slice(1, -1).replaceAll(" ", "␣") || "(nothing)";

export function tokenView(tokens) {
  const view = element("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": "Tokens of the answer; the arrow keys go from one to the next" });
  view.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  extend(view, tokens);
  return view;
}

// Adds the tokens that the view does not have yet.
export function extend(view, tokens) {
  for (let i = view.childElementCount; i < tokens.length; i++)
    view.append(element("span", { class: `token surprise-${level(tokens[i].logprob)}`, "data-token": i }, spelled(view.decoder, tokens[i].text)));
}

export function legend() {
  const names = ["over 90%", "over 50%", "over 20%", "over 5%", "over 0.7%", "less"];
  const marks = names.map((name, i) => element("span", { class: `token surprise-${i}` }, name));
  return element("p", { class: "legend soft" }, "Probability of a token: ", ...marks);
}

const tip = element("div", { id: "tip", role: "tooltip", hidden: "" });

function showTip(span, token) {
  const rows = token.top.map(([text, logprob]) =>
    element("tr", text === token.text ? { class: "taken" } : {}, element("td", {}, visible(text)), element("td", {}, percent(logprob))));
  tip.replaceChildren(element("strong", {}, visible(token.text)), ` ${percent(token.logprob)}, ${(-token.logprob).toFixed(2)} nats`,
    element("table", {}, ...rows));
  if (!tip.isConnected) document.body.append(tip);
  tip.hidden = false;
  const frame = (span.getClientRects()[0] ?? span.getBoundingClientRect());
  const left = Math.max(8, Math.min(frame.left, innerWidth - tip.offsetWidth - 8));
  const below = frame.bottom + 6, fits = below + tip.offsetHeight < innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${fits ? below : Math.max(8, frame.top - tip.offsetHeight - 6)}px`;
}

export function hideTip() {
  tip.hidden = true;
}

// tokensOf: from an element within a message to the tokens of its answer. say: speaks to screen readers.
export function listen(log, tokensOf, say) {
  log.onpointerover = ({ target }) => {
    const span = target.closest?.("[data-token]"), token = span && tokensOf(span)?.[span.dataset.token];
    token ? showTip(span, token) : hideTip();
  };
  log.onpointerleave = log.onscroll = log.onfocusout = hideTip;
  log.addEventListener("keydown", (event) => {
    const view = event.target.closest?.(".tokens"), by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!view || !by) return;
    event.preventDefault();
    const span = move(view, by), token = tokensOf(span)[span.dataset.token];
    showTip(span, token);
    say(`${visible(token.text)}, ${percent(token.logprob)}`);
  });
}

function move(view, by) {
  const before = view.querySelector(".here"), all = view.querySelectorAll("[data-token]");
  const span = before ? all[Math.max(0, Math.min(all.length - 1, Number(before.dataset.token) + by))] : all[0];
  before?.classList.remove("here");
  span.classList.add("here");
  span.scrollIntoView({ block: "nearest" });
  return span;
}
