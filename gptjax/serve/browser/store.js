// Conversations in the browser's own database, on this machine alone. A browser that keeps none (a private window, a full
// disk) is said once: the page then works until it is closed.

import { read } from "./tree.js";

const NAME = "gptjax", TABLE = "conversations";

function promised(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

export class Store {
  // failed: takes the reason why nothing is kept. changed: is called when another tab has changed a conversation.
  constructor(failed, changed) {
    this.failed = failed;
    this.database = null;
    this.tabs = "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;
    if (this.tabs) this.tabs.onmessage = ({ data }) => changed(data);
  }

  // All of them; one that cannot be read is left out, with its reason in `unread`.
  async open() {
    try {
      const opening = indexedDB.open(NAME, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore(TABLE, { keyPath: "id" });
      this.database = await promised(opening);
      return (await promised(this.table("readonly").getAll())).flatMap((value) => this.checked(value));
    } catch (error) {
      this.failed(error.message);
      return [];
    }
  }

  async get(id) {
    return this.checked(await promised(this.table("readonly").get(id)))[0];
  }

  checked(value) {
    try {
      return value ? [read(value)] : [];
    } catch (error) {
      this.failed(error.message);
      return [];
    }
  }

  table(mode) {
    return this.database.transaction(TABLE, mode).objectStore(TABLE);
  }

  async write(change, id) {
    if (!this.database) return;
    try {
      await promised(change(this.table("readwrite")));
      this.tabs?.postMessage(id);
    } catch (error) {
      this.failed(error.message);
    }
  }

  save(conversation) {
    return this.write((table) => table.put(structuredClone(conversation)), conversation.id);
  }

  delete(id) {
    return this.write((table) => table.delete(id), id);
  }
}

// Small settings of the page; a browser that refuses them gives the defaults.
export function remembered(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`gptjax.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`gptjax.${name}`, JSON.stringify(value));
  } catch {
    // the page goes on with what it has
  }
}
