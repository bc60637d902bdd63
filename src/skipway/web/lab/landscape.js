// The loss around the weights: a line at once, a plane from coarse to fine, and what the network answers at a point.

import { get, onReturn, post, work } from "./api.js";
import { lineChart } from "./chart.js";
import { watchJob } from "./jobs.js";
import { drawPlane, placeOf } from "./plane.js";
import { h, message, percent, progress, python, saving, short, svgText, toCsv } from "./dom.js";

const MOST = 24; // flipped images shown

export function landscapePanel(network, root) {
  let settings = null; // of what is shown
  let found = null;
  let job = "";
  let spot = null;
  let asked = null;

  const problem = message();
  const bar = progress("Measuring");
  const reading = h("div", { class: "reading", "aria-live": "polite" });
  const code = python("the landscape");
  const loss = lineChart({ title: "Loss along the first direction", xLabel: "distance, in lengths of the direction", xName: "distance", yLabel: "loss, nats", series: [{ name: "loss", colour: "accent", dash: [] }], height: 200, log: true });
  const accuracy = lineChart({ title: "Accuracy along the first direction", xLabel: "distance, in lengths of the direction", xName: "distance", yLabel: "accuracy, %", series: [{ name: "accuracy", colour: "plain", dash: [7, 4] }], height: 200, range: [0, 100] });
  const map = h("div", { class: "plane" });
  const there = h("div", { class: "spot", "aria-live": "polite" });
  const looking = progress("Asking the network there");

  const choose = (name, label, options) => h("label", { class: "field" }, label, h("select", { name }, options.map(([value, words]) => h("option", { value }, words))));
  const form = h("form", { class: "fields", "aria-label": "The landscape" },
    choose("plane", "Plane", [["random", "random"], ["path", "of the checkpoints"]]),
    choose("span", "As far as", [["1", "1 length"], ["0.25", "a quarter length"], ["0.5", "half a length"], ["2", "2 lengths"]]),
    choose("side", "Finest grid", [["9", "9 × 9"], ["5", "5 × 5"], ["17", "17 × 17"], ["33", "33 × 33"], ["65", "65 × 65"]]),
    choose("seed", "Directions", [["0", "first draw"], ["1", "second draw"], ["2", "third draw"]]));
  const again = h("button", { type: "submit", class: "primary" }, "Measure");
  const stop = h("button", { type: "button", hidden: true, onclick: () => post(`api/jobs/${job}/cancel`).catch((error) => problem.show(error.message)) }, "Stop");
  form.append(h("span", { class: "group end" }, again, stop));

  const at = h("form", { class: "bar", "aria-label": "A point of the plane" },
    ...["x", "y"].map((axis) => h("label", { class: "field" }, axis, h("input", { type: "number", name: axis, value: "0", step: "any", min: "-100", max: "100", required: true }))),
    h("button", { type: "submit" }, "See the answers there"));
  at.addEventListener("submit", (event) => { event.preventDefault(); look(Number(at.elements.x.value), Number(at.elements.y.value)); });
  map.addEventListener("click", (event) => {
    const place = found?.grid.length ? placeOf(event, map.firstChild, found) : null;
    if (!place) return;
    [at.elements.x.value, at.elements.y.value] = place.map((v) => Number(v.toPrecision(3)));
    look(...place);
  });
  form.addEventListener("submit", (event) => { event.preventDefault(); start(); });

  async function start() {
    if (job) post(`api/jobs/${job}/cancel`).catch(() => {});
    const given = Object.fromEntries(new FormData(form));
    const next = { ...settings, plane: given.plane, span: Number(given.span), side: Number(given.side), seed: Number(given.seed) };
    problem.show("");
    there.replaceChildren();
    spot = null;
    try {
      const begun = await post("api/experiments/landscape", { settings: next });
      settings = next;
      job = begun.job;
      code.show(begun.lines);
    } catch (error) {
      return problem.show(error.message);
    }
    found = null;
    bar.begin();
    running(true);
    const mine = job;
    watchJob(mine, {
      state: (now) => bar.tell(now.share, now.state === "waiting" ? "Waiting for the experiment before it" : `Measuring, ${Math.round(100 * now.share)}%`),
      partial: (part) => take(mine, part.reading),
      end: (text) => mine === job && end(text),
    });
  }

  async function take(mine, said) {
    const made = await get(`api/jobs/${mine}/result.json`).catch(() => null);
    if (!made || mine !== job) return;
    found = made;
    reading.replaceChildren(...said.sentences.map((text) => h("p", {}, text)));
    draw();
  }

  function running(on) { stop.hidden = !on; again.textContent = on ? "Measure anew" : "Measure"; }

  function end(text) {
    bar.end();
    running(false);
    problem.show(text);
  }

  function draw() {
    if (!found) return;
    loss.set([found.line, found.line_losses]);
    accuracy.set([found.line, found.line_accuracies.map((v) => (v === null ? null : 100 * v))]);
    map.replaceChildren(found.grid.length ? drawPlane(found, spot) : h("p", { class: "quiet" }, "The plane follows the line."));
  }

  async function look(x, y) {
    if (!settings) return;
    asked?.abort();
    const mine = (asked = new AbortController());
    looking.begin();
    try {
      const made = await work("api/landscape/at", { settings, x, y }, { signal: mine.signal });
      spot = made.spot;
      code.show(made.lines);
      problem.show("");
      draw();
      tell();
    } catch (error) {
      if (error.name === "AbortError") return;
      problem.show(`${error.message}.`);
    }
    if (mine === asked) looking.end();
  }

  function tell() {
    const flips = spot.flips.slice(0, MOST).map((f) => h("li", {}, h("img", { src: `api/train/${f.index}.png`, alt: `image ${f.name}`, width: 56, height: 56 }), h("span", {}, `${f.before} → ${f.after}`)));
    const more = spot.flips.length > MOST ? `, ${MOST} of them here` : "";
    there.replaceChildren(
      h("div", { class: "numbers" }, ...[[`(${short(spot.x)}, ${short(spot.y)})`, "place"], [spot.loss === null ? "no number" : short(spot.loss), "loss there, nats"], [percent(spot.accuracy), "accuracy there"]].map(([value, label]) => h("div", { class: "number" }, h("span", { class: "value" }, value), h("span", { class: "quiet" }, label)))),
      h("h4", {}, spot.flips.length ? `${spot.flips.length} of ${settings.images} answers are others than at the weights${more}` : "Every answer is the one at the weights."),
      h("ul", { class: "flips" }, flips));
  }

  const lineCsv = () => toCsv(["x", "loss", "accuracy"], (found?.line ?? []).map((x, i) => [x, found.line_losses[i], found.line_accuracies[i]]));
  const planeCsv = () => toCsv(["x", "y", "loss", "accuracy"], (found?.grid ?? []).flatMap((y, j) => found.grid.map((x, i) => [x, y, found.losses[j][i], found.accuracies[j][i]])));
  const planeSvg = () => (found?.grid.length ? svgText(drawPlane(found, spot)) : "");

  root.append(
    h("div", { class: "head" }, h("h2", {}, "The landscape"), h("p", { class: "lead" }, "The loss when all weights are moved at once: along a line, then over a plane, from coarse to fine.")),
    h("div", { class: "card" }, form, bar, problem),
    h("div", { class: "pair top-aligned" },
      h("div", { class: "stack" }, h("div", { class: "card" },
        h("figure", { class: "figure" }, h("figcaption", {}, h("span", {}, "Along the first direction"), saving("landscape-line", "the line", loss.svg, lineCsv)), loss.root, accuracy.root)), h("div", { class: "card" }, h("h3", {}, "What it says"), reading)),
      h("div", { class: "card" },
        h("figure", { class: "figure" }, h("figcaption", {}, h("span", {}, "Over the plane: click a point"), saving("landscape-plane", "the plane", planeSvg, planeCsv)), map), at, looking, there)),
    code);

  async function begin() {
    const card = (await get("api/experiments")).find((experiment) => experiment.name === "landscape");
    settings = card.settings;
    for (const name of ["plane", "span", "side", "seed"]) {
      const select = form.elements[name];
      if ([...select.options].some((option) => option.value === String(settings[name]))) select.value = String(settings[name]);
    }
    start();
  }
  onReturn((anew) => { if (anew && settings) start(); });
  begin().catch((error) => problem.show(error.message));
  return { redraw: () => { loss.redraw(); accuracy.redraw(); draw(); } };
}
