// What the page asks of the server. Work comes as a stream of events; a server that is gone is said, and waited for.

import { h } from "./dom.js";

export class Refused extends Error {}

const returned = new Set(); // called when the server is there again: (whether it was started anew)
let boot = "";
let waiting = false;

export const onReturn = (call) => returned.add(call);
export const knownBoot = (value) => (boot = value);

function banner(...words) {
  const box = document.getElementById("banner");
  box.replaceChildren(...words);
  box.hidden = !words.length;
}

// The server does not answer: say so, and look for it until it does.
export function lost() {
  if (waiting) return;
  waiting = true;
  banner(h("strong", {}, "The lab's server does not answer."), " Is it still running in its terminal? Trying again until it does …");
  const look = async () => {
    try {
      const response = await fetch("api/network");
      const found = await response.json();
      waiting = false;
      const anew = found.boot !== boot;
      boot = found.boot;
      banner();
      for (const call of returned) call(anew);
    } catch {
      setTimeout(look, 1500);
    }
  };
  setTimeout(look, 1500);
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    lost();
    throw new Refused("the server does not answer");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refused(body?.error ?? `the server answered ${response.status}`);
}

export const get = async (path) => (await ask(path)).json();

const asJson = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body ?? {}) });

export const post = async (path, body) => (await ask(path, asJson(body))).json();

// Posts, and follows the events until the result. Aborting the signal cancels the work on the server.
export async function work(path, body, { signal, onProgress = () => {}, onPartial = () => {} } = {}) {
  const request = body instanceof Blob ? { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body } : asJson(body);
  const response = await ask(path, { ...request, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      lost();
      throw new Refused("the server ended in the middle of it");
    }
    if (chunk.done) throw new Refused("the server ended in the middle of it");
    text += chunk.value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const [, kind, data] = /^event: (.*)\ndata: (.*)$/s.exec(event);
      const value = JSON.parse(data);
      if (kind === "progress") onProgress(value);
      else if (kind === "partial") onPartial(value);
      else if (kind === "result") return value;
      else throw new Refused(kind === "error" ? value : "it was cancelled");
    }
  }
}

// Follows a stream of events of the server: {name: call}. Gives back what ends it.
export function follow(path, calls, onLost = () => {}) {
  const source = new EventSource(path);
  for (const [name, call] of Object.entries(calls)) source.addEventListener(name, (event) => event.data !== undefined && call(JSON.parse(event.data)));
  source.onerror = () => {
    source.close();
    onLost();
    lost();
  };
  return () => source.close();
}
