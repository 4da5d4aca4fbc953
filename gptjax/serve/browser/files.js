// Conversations as a file, and back.

import { download } from "./controls.js";
import { read } from "./tree.js";

const FORMAT = "gptjax-conversations";

export function exportAll(conversations) {
  download("conversations.json", JSON.stringify({ format: FORMAT, version: 1, conversations: [...conversations] }, null, 1));
}

// All conversations of a file. Throws an Error that says why there are none.
export async function importFile(file) {
  try {
    const value = JSON.parse(await file.text());
    if (value?.format !== FORMAT || !Array.isArray(value.conversations)) throw new Error("it holds no conversations of this page");
    return value.conversations.map(read);
  } catch (error) {
    throw new Error(`${file.name} was not imported: ${error.message}.`);
  }
}
