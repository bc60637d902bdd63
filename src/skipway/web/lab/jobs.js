// Experiments under way, all in one stream of events: a browser holds only six connections to a server.

import { follow } from "./api.js";

const watched = new Map(); // job -> {state, partial, end, lost}
let close = () => {};

// Follows a job: `state(now)`, `partial({version, reading})`, `end(text)`, `lost()`.
export function watchJob(job, calls) {
  watched.set(job, { version: 0, ...calls });
  listen();
}

function listen() {
  close();
  if (!watched.size) return;
  const ended = (words) => (now) => {
    const calls = watched.get(now.job);
    if (!calls) return;
    watched.delete(now.job);
    if (!watched.size) close(); // before the server ends the stream
    calls.end(words ?? now.error ?? "");
  };
  close = follow(`api/jobs/stream?jobs=${[...watched.keys()].join(",")}`, {
    state: (now) => watched.get(now.job)?.state(now),
    partial: (part) => {
      const calls = watched.get(part.job);
      if (!calls || part.version <= calls.version) return;
      calls.version = part.version;
      calls.partial(part);
    },
    result: ended(""),
    cancelled: ended("It was stopped; what there is so far stands."),
    error: ended(null),
  }, () => {
    const all = [...watched.values()];
    watched.clear();
    for (const calls of all) calls.end("The server stopped in the middle of it: run it again when it is back.");
  });
}
