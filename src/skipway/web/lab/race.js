// The race: a residual network and its plain twin learn side by side; curves, and how gradients spread over depth.

import { follow, onReturn, post, work } from "./api.js";
import { heatMap, heatSvg, lineChart } from "./chart.js";
import { duration, h, message, percent, progress, python, saving, short, toCsv } from "./dom.js";
import { scaleBar, scaleOf } from "./scale.js";

const DEPTHS = [8, 14, 20, 26, 32, 38, 44, 56, 74, 110];
const COLUMNS = 240; // of a heat map: more steps are thinned
const LINES = [{ name: "residual", colour: "residual", dash: [] }, { name: "plain twin", colour: "plain", dash: [7, 4] }];
const NETWORKS = ["residual", "plain"];

function fields(network) {
  const choose = (name, label, options, value, hint) => h("label", { class: "field", title: hint ?? null }, label, h("select", { name }, options.map(([key, words]) => h("option", { value: key, selected: key === value }, words))));
  const put = (name, label, value, attributes) => h("label", { class: "field" }, label, h("input", { name, value, ...attributes, required: true, inputmode: "decimal" }));
  const images = [["digits", "digits, 16 pixels"]];
  if (network.image_size <= 64) images.push(["own", `this lab's, ${network.image_size} pixels`]);
  return [
    choose("depth", "Depth", DEPTHS.map((d) => [d, `${d} layers`]), 20),
    choose("width", "Width", [4, 8, 16, 32].map((w) => [w, `${w} channels`]), 8),
    choose("norm", "Normalisation", [["batch", "batch"], ["group", "group"], ["none", "none"]], "batch"),
    choose("init", "Initial weights", [["he", "He"], ["fixup", "Fixup"], ["dirac", "Dirac"]], "he", "Fixup is for networks without normalisation"),
    choose("shortcut", "Skips", [["zero_pad", "zero-padded"], ["projection", "projected"], ["project_all", "all projected"], ["avg_pool", "pooled, projected"], ["avg_zero_pad", "pooled, padded"]], "zero_pad"),
    put("lr", "Learning rate", "0.1", { type: "number", min: "0.000001", max: "100", step: "any" }),
    put("epochs", "Epochs", "12", { type: "number", min: "1", max: "1000", step: "1" }),
    put("seed", "Seed", "0", { type: "number", min: "0", max: "1000000", step: "1" }),
    choose("images", "Images", images, "digits"),
  ];
}

export function racePanel(network, root) {
  let race = null; // what the server said of it
  let steps = [];
  let scores = [];
  let state = { playing: false, done: false, step: 0 };
  let unfollow = () => {};
  let shown = 0;

  const problem = message();
  const preparing = progress("Preparing the race");
  const form = h("form", { class: "fields", "aria-label": "The race" }, fields(network));
  const estimate = h("p", { class: "estimate", role: "status" });
  const place = h("p", { class: "place", role: "status" });
  const code = python("the race");
  const loss = lineChart({ title: "Training loss", xLabel: "step", yLabel: "loss, nats", series: LINES });
  const accuracy = lineChart({ title: "Accuracy on images not trained on", xLabel: "step", yLabel: "accuracy, %", series: LINES.map((line) => ({ ...line, points: true })), range: [0, 100] });
  const maps = NETWORKS.map((name, i) => heatMap(`Gradient norms of the ${LINES[i].name} network by layer and step`));
  const mapScale = h("div");
  const table = h("div", { class: "table-wrap", tabindex: "0", role: "region", "aria-label": "Where the networks are" });

  const play = h("button", { type: "button", class: "primary", disabled: true, onclick: () => act(state.playing ? "pause" : "play") }, "Play");
  const step = h("button", { type: "button", disabled: true, onclick: () => act("step") }, "Step");
  const reset = h("button", { type: "button", disabled: true, onclick: () => act("reset") }, "Reset");

  function asked() {
    const given = Object.fromEntries(new FormData(form));
    const { images, ...rest } = given;
    for (const name of ["depth", "width", "epochs", "seed", "lr"]) rest[name] = Number(rest[name]);
    return { settings: rest, images };
  }

  async function act(action) {
    try {
      Object.assign(state, await post(`api/race/${race.race}/${action}`));
      problem.show("");
      if (action === "reset") clear();
      else if (action !== "pause") listen();
    } catch (error) {
      problem.show(error.message);
    }
    tell();
  }

  // A new race by the form; it is ready, and its time told, before Play.
  async function prepare() {
    if (!form.checkValidity()) return problem.show("A field is empty or beyond its bounds: learning rate 0.000001 to 100, epochs 1 to 1000.");
    unfollow();
    if (race) post(`api/race/${race.race}/pause`).catch(() => {});
    const mine = (prepare.turn = (prepare.turn ?? 0) + 1);
    race = null;
    clear();
    estimate.textContent = "Measuring how long it takes …";
    preparing.begin();
    try {
      const made = await work("api/race", asked());
      if (mine !== prepare.turn) return;
      race = made;
      problem.show("");
      estimate.replaceChildren(h("strong", {}, `Takes ${duration(race.seconds)}`), ` here: ${race.total_steps} steps of both networks, ${race.train} images to learn from, ${race.seen} to score on. The twin is the same network without its skips.`);
      code.show(race.lines);
    } catch (error) {
      if (mine !== prepare.turn) return;
      estimate.textContent = "";
      problem.show(error.message);
    }
    preparing.end();
    tell();
  }

  // The stream is open only while the race goes on: a browser holds few connections.
  function listen() {
    unfollow();
    unfollow = follow(`api/race/${race.race}/stream?since=${steps.length}`, {
      steps: (found) => { steps.push(...found.filter((s) => s.step > (steps.at(-1)?.step ?? 0))); queue(); },
      scores: (found) => { scores = merge(scores, found); queue(); },
      state: (found) => {
        state = found;
        if (found.error) problem.show(found.error);
        if (!found.playing && found.step === (steps.at(-1)?.step ?? 0)) unfollow();
        tell();
      },
    }, () => { state.playing = false; problem.show("The server stopped in the middle of the race. The page goes on as soon as it is back."); tell(); });
  }

  function clear() {
    steps = [];
    scores = [];
    state = { playing: false, done: false, step: 0 };
    draw();
  }

  const queue = () => { if (!shown) shown = requestAnimationFrame(() => { shown = 0; draw(); }); };

  function draw() {
    const x = steps.map((s) => s.step);
    loss.set([x, ...NETWORKS.map((name) => steps.map((s) => s.laps[name]?.[0] ?? null))]);
    accuracy.set([scores.map(([at]) => at), ...NETWORKS.map((name) => scores.map(([, made]) => (made[name]?.accuracy ?? null) === null ? null : 100 * made[name].accuracy))]);
    drawMaps();
    drawTable();
    tell();
  }

  // Thinned columns of log norms as shares of one scale for both networks.
  function mapped() {
    const every = Math.max(1, Math.ceil(steps.length / COLUMNS));
    const columns = steps.filter((_, i) => i % every === 0);
    const norms = NETWORKS.map((name) => columns.map((s) => s.laps[name]?.[2] ?? []));
    const scale = scaleOf(norms.flat(2).filter((v) => v !== null && Number.isFinite(v)), { log: true });
    const rows = norms.map((list) => (race?.layers ?? []).map((_, layer) => list.map((column) => (column[layer] > 0 ? scale.share(column[layer]) : null))));
    return { scale, rows };
  }

  function drawMaps() {
    const { scale, rows } = mapped();
    maps.forEach((map, i) => {
      const last = steps.at(-1)?.laps[NETWORKS[i]]?.[2];
      if (rows[i].length && rows[i][0].length) map.set(rows[i], `first layer ${short(last?.[0])}, last layer ${short(last?.at(-1))} at step ${steps.at(-1).step}`);
      else { map.root.width = 1; map.root.height = 1; }
    });
    mapScale.replaceChildren(scaleBar(scale, { title: "Gradient norm", about: "of each layer's weight, one scale for both", log: true }));
  }

  function drawTable() {
    const latest = steps.at(-1);
    const score = scores.at(-1)?.[1];
    table.replaceChildren(h("table", { class: "plain-table" }, h("caption", { class: "unseen" }, "Where the networks are"),
      h("thead", {}, h("tr", {}, ["", "training loss", "accuracy", "gradient, first layer", "last layer"].map((t) => h("th", { scope: "col" }, t)))),
      h("tbody", {}, NETWORKS.map((name, i) => h("tr", {}, h("th", { scope: "row" }, h("span", { class: `swatch ${name}` }), LINES[i].name), h("td", {}, latest ? short(latest.laps[name]?.[0]) : "–"), h("td", {}, score ? percent(score[name]?.accuracy ?? null) : "–"), h("td", {}, latest ? short(latest.laps[name]?.[2][0]) : "–"), h("td", {}, latest ? short(latest.laps[name]?.[2].at(-1)) : "–"))))));
  }

  function tell() {
    play.textContent = state.playing ? "Pause" : "Play";
    play.disabled = !race || state.done;
    step.disabled = !race || state.done || state.playing;
    reset.disabled = !race || steps.length === 0;
    place.textContent = race ? `step ${steps.at(-1)?.step ?? 0} of ${race.total_steps}${state.done ? ", done" : ""}` : "";
  }

  const stepsCsv = () => toCsv(["step", ...NETWORKS.flatMap((n) => [`${n}_loss`, `${n}_batch_accuracy`])], steps.map((s) => [s.step, ...NETWORKS.flatMap((n) => [s.laps[n]?.[0], s.laps[n]?.[1]])]));
  const scoresCsv = () => toCsv(["step", ...NETWORKS.flatMap((n) => [`${n}_accuracy`, `${n}_loss`])], scores.map(([at, made]) => [at, ...NETWORKS.flatMap((n) => [made[n]?.accuracy, made[n]?.loss])]));
  const mapsCsv = () => toCsv(["step", "network", ...(race?.layers ?? [])], steps.flatMap((s) => NETWORKS.map((n) => [s.step, n, ...(s.laps[n]?.[2] ?? [])])));
  const mapsSvg = () => { const { scale, rows } = mapped(); return heatSvg(rows.map((r, i) => ({ title: `${LINES[i].name}: gradient norm by layer`, rows: r })), { xLabel: `steps 1 to ${steps.at(-1)?.step ?? 0}`, yLabel: "layer", scale: `${short(scale.least)} to ${short(scale.most)}, logarithmic` }); };

  const chart = (title, plot, saves) => h("figure", { class: "card figure" }, h("figcaption", {}, h("span", {}, title), saves), plot);
  root.append(
    h("div", { class: "head" }, h("h2", {}, "The race"), h("p", { class: "lead" }, "A residual network and its plain twin, from the same initial weights, on the same batches in the same order.")),
    h("div", { class: "card" }, form, estimate, preparing, problem, h("div", { class: "bar" }, h("span", { class: "group" }, play, step, reset), place)),
    h("div", { class: "pair" },
      chart("Training loss", loss.root, saving("race-loss", "the training loss", loss.svg, stepsCsv)),
      chart("Accuracy on images not trained on", accuracy.root, saving("race-accuracy", "the accuracy", accuracy.svg, scoresCsv))),
    h("figure", { class: "card figure" }, h("figcaption", {}, h("span", {}, "Gradient norms: depth × time"), saving("race-gradients", "the gradient norms", mapsSvg, mapsCsv)),
      h("div", { class: "pair tight" }, maps.map((map, i) => h("div", { class: "map" }, h("p", { class: "map-title" }, h("span", { class: `swatch ${NETWORKS[i]}` }), LINES[i].name), h("div", { class: "map-frame" }, h("span", { class: "axis-y" }, "image ← layer → answer"), map.root), h("p", { class: "axis-x quiet" }, "steps →")))), mapScale),
    h("div", { class: "card" }, table),
    code,
  );

  form.addEventListener("change", () => { if (form.elements.init.value === "fixup" && form.elements.norm.value !== "none") form.elements.norm.value = "none"; prepare(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  onReturn((anew) => { if (anew || !race) prepare(); else { problem.show(""); if (state.playing) listen(); } });
  prepare();
  return { redraw: () => { loss.redraw(); accuracy.redraw(); draw(); } };
}

const merge = (old, more) => [...old.filter(([at]) => !more.some(([other]) => other === at)), ...more].sort((a, b) => a[0] - b[0]);
