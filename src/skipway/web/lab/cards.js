// The cards: each canonical figure, what its paper says, and what this network shows.

import { get, onReturn, post } from "./api.js";
import { watchJob } from "./jobs.js";
import { duration, h, message, progress, python } from "./dom.js";

const VERDICTS = { agrees: "✓ agrees with the paper", disagrees: "✕ disagrees with the paper", open: "○ cannot be said" };

export function cardsPanel(network, root) {
  const grid = h("div", { class: "cards" });
  const problem = message();
  root.append(h("div", { class: "head" }, h("h2", {}, "Cards"), h("p", { class: "lead" }, "What papers say of residual networks, beside what this one shows.")), problem, grid);
  get("api/experiments").then(
    (found) => arrange(grid, found.map(card)),
    (error) => problem.show(error.message),
  );
  return {};
}

// Two columns where there is room, so that a card that grows moves only those below it; one where there is not.
function arrange(grid, cards) {
  const wide = matchMedia("(min-width: 960px)");
  const put = () => {
    const count = wide.matches ? 2 : 1;
    const columns = Array.from({ length: count }, (_, i) => h("div", { class: "stack" }, cards.filter((_, place) => place % count === i)));
    grid.replaceChildren(...columns);
  };
  wide.addEventListener("change", put);
  put();
}

function card(experiment) {
  let job = "";
  let wanted = ""; // address of the picture to show
  const problem = message();
  const bar = progress("Running");
  const reading = h("div", { class: "reading", "aria-live": "polite" }, h("p", { class: "quiet" }, "Not run yet."));
  const figure = h("div", { class: "drawn" });
  const code = python(experiment.title);
  code.hidden = true;
  const saves = h("span", { class: "saving", hidden: true });
  const run = h("button", { type: "button", class: "primary", onclick: () => start() }, "Run");
  const stop = h("button", { type: "button", hidden: true, onclick: () => post(`api/jobs/${job}/cancel`).catch((error) => problem.show(error.message)) }, "Cancel");
  const time = experiment.fits ? `up to ${duration(experiment.seconds).replace("about ", "")} with quick settings` : "no quick settings for this network: it may take long, or be refused";

  async function start() {
    problem.show("");
    try {
      const begun = await post(`api/experiments/${experiment.name}`, { settings: experiment.settings });
      job = begun.job;
      code.show(begun.lines);
      code.hidden = false;
      listen();
    } catch (error) {
      problem.show(error.message);
    }
  }

  function listen() {
    running(true);
    bar.begin();
    watchJob(job, {
      state: (now) => bar.tell(now.share, now.state === "waiting" ? "Waiting for the experiment before it" : `Running, ${Math.round(100 * now.share)}%`),
      partial: show,
      end,
    });
  }

  function show({ version, reading: said }) {
    reading.replaceChildren(h("p", { class: `verdict ${said.verdict}` }, VERDICTS[said.verdict] ?? said.verdict), ...said.sentences.map((text) => h("p", {}, text)));
    const idle = !wanted;
    wanted = `api/jobs/${job}/result.svg?version=${version}`;
    if (idle) picture(`${experiment.title}: ${said.sentences[0] ?? ""}`);
    const link = (kind) => h("a", { class: "button small", href: `api/jobs/${job}/result.${kind}`, download: `${experiment.name}.${kind}`, "aria-label": `Save ${experiment.title} as ${kind.toUpperCase()}` }, kind.toUpperCase());
    saves.replaceChildren(...["svg", "csv", "json"].map(link));
    saves.hidden = false;
  }

  // One picture at a time; of those that came meanwhile only the last.
  function picture(alt) {
    const source = wanted;
    const next = h("img", { class: "figure", src: source, alt });
    const then = (put) => {
      if (put) figure.replaceChildren(next);
      if (wanted === source) wanted = "";
      else picture(alt);
    };
    next.addEventListener("load", () => then(true));
    next.addEventListener("error", () => then(false));
  }

  function running(on) {
    run.hidden = on;
    stop.hidden = !on;
  }

  function end(text) {
    bar.end();
    running(false);
    run.textContent = "Run again";
    problem.show(text);
  }

  onReturn((anew) => { if (anew) saves.hidden = true; });
  return h("article", { class: "card experiment", id: `card-${experiment.name}` },
    h("div", { class: "title-row" }, h("h3", {}, experiment.title), saves),
    h("div", { class: "claim" }, h("p", { class: "eyebrow" }, "The paper says"), h("p", {}, experiment.claim), h("p", { class: "quiet" }, experiment.paper)),
    h("div", { class: "shows" }, h("p", { class: "eyebrow" }, "This network shows"), reading, figure, bar, problem, h("div", { class: "bar" }, run, stop, h("span", { class: "quiet" }, time))),
    code);
}
