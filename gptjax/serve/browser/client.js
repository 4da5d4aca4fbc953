// Requests to the server that the page came from, and its streams of events.

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem("gptjax.key") ?? "",
  set: (value) => (value ? sessionStorage.setItem("gptjax.key", value) : sessionStorage.removeItem("gptjax.key")),
};

// The response. Throws ServerError with the server's own reason.
export async function request(path, body = undefined, signal = undefined) {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer: it has stopped, or the connection is gone.", 0);
  }
  if (!response.ok) throw new ServerError(await reason(response), response.status);
  return response;
}

async function reason(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    return error.message ?? String(error);
  } catch {
    return text.trim().slice(0, 300) || `the server answered ${response.status} ${response.statusText}`;
  }
}

// The objects of a stream of events, until its [DONE]. Throws ServerError: an event is an error, or the stream breaks off.
export async function* stream(path, body, signal) {
  const response = await request(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      const lines = ((rest += value ?? "")).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue; // comments keep the connection open
        const words = line.slice(5).trim();
        if (words === "[DONE]") return;
        const event = JSON.parse(words);
        if (event.error) throw new ServerError(event.error.message ?? String(event.error), event.error.code ?? 500);
        yield event;
      }
      if (done) throw new ServerError("The connection ended before the answer did.", 0);
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
    throw new ServerError(`The connection ended before the answer did (${error.message}).`, 0);
  } finally {
    reader.cancel().catch(() => {});
  }
}

// ---- what is asked

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed", "repetition_penalty"];

// The body and path of a request for the text after `nodes`. Settings that are empty are the server's.
export function asked(model, settings, nodes) {
  const body = { model: model.id, stream: true, stream_options: { include_usage: true } };
  for (const name of NUMBERS) if (typeof settings[name] === "number") body[name] = settings[name];
  if (!model.chat) {
    if (settings.probabilities) body.logprobs = 5;
    return ["v1/completions", { ...body, prompt: nodes.map((node) => node.content).join("") }];
  }
  if (settings.probabilities) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  return ["v1/chat/completions", { ...body, messages: messages(settings, nodes) }];
}

export function messages(settings, nodes) {
  const system = settings.system?.trim() ? [{ role: "system", content: settings.system }] : [];
  return [...system, ...nodes.map(({ role, content }) => ({ role, content }))];
}

// {text, tokens} of a choice of either path: tokens as [{text, logprob, top: [[text, logprob]]}].
export function piece(choice) {
  const text = choice.delta?.content ?? choice.text ?? "";
  const given = choice.logprobs;
  if (!given) return { text, tokens: [] };
  if (given.content) {
    const top = (one) => (one.top_logprobs ?? []).map(({ token, logprob }) => [token, logprob]);
    return { text, tokens: given.content.map((one) => ({ text: one.token, logprob: one.logprob, top: top(one) })) };
  }
  const tops = given.top_logprobs ?? [];
  const tokens = (given.tokens ?? []).map((token, i) => ({
    text: token, logprob: given.token_logprobs[i] ?? 0, top: Object.entries(tops[i] ?? {}).sort((a, b) => b[1] - a[1]),
  }));
  return { text, tokens };
}
