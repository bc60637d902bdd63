// The strip: look at blocks, cut skips and blocks, scale branches, and see at once what the answers are worth.

import { get, work } from "./api.js";
import { h, message, progress, python, saving, short, svgText, toCsv } from "./dom.js";
import { makeInspector } from "./inspector.js";
import { makeResults } from "./results.js";
import * as store from "./store.js";
import { drawStrip, fitting } from "./stripdraw.js";
import { scaleOf, scaleBar } from "./scale.js";

const MEASURES = {
  gradient: { title: "Gradient norm", about: "of the mean loss by the block's output, on 64 training images", log: true, words: (v) => `gradient norm ${short(v)}` },
  share: { title: "Branch share", about: "of the variance, var F / (var F + var S): 0 is the shortcut alone, 1 the branch alone", low: 0, high: 1, words: (v) => `branch share ${v.toFixed(2)}` },
  lesion: { title: "Lesion damage", about: "accuracy lost when the block alone is cut, in points", low: 0, words: (v) => `cutting it costs ${(100 * v).toFixed(1)} points` },
  flops: { title: "FLOPs", about: "of the block for one image", low: 0, words: (v) => `${short(v)} FLOPs` },
};
const CELLS = { fit: 0, small: 24, medium: 36, large: 56 };
const TOOLS = { inspect: "Inspect", skip: "✂ Cut skips", block: "✕ Cut blocks" };

export function stripPanel(network, root) {
  const values = { gradient: {}, share: {}, lesion: {}, flops: {}, parameters: {} };
  let tool = "inspect";
  let zoom = "fit";
  let width = 0;
  let asked = null;

  const problem = message();
  const waiting = progress("Scoring");
  const chart = h("div", { class: "chart-area" });
  const legend = h("div", { class: "legend-row" });
  const chips = h("ul", { class: "chips", "aria-label": "Edits" });
  const code = python("the strip");
  const measuring = progress("Measuring");
  const results = makeResults(network);
  const inspector = makeInspector(network, values);

  const stateOf = (unit) => {
    const alpha = (kind) => { const edit = store.find(`${kind}:${unit.name}`); return edit === null ? 1 : Number(edit.split("=")[1]); };
    return { cut: store.find(`block:${unit.name}`) !== null, skip: alpha("shortcut"), branch: alpha("branch") };
  };

  function draw() {
    const name = store.view().measure;
    const measure = MEASURES[name];
    const found = values[name];
    const scale = scaleOf(Object.values(found).filter((v) => v !== null && v !== undefined), measure);
    const valueOf = (unit) => found[unit.name] ?? null;
    const focused = document.activeElement?.closest?.("g.unit")?.dataset.name;
    const svg = drawStrip({
      units: network.units, width: chart.clientWidth || 340, cell: CELLS[zoom] || fitting(network.units, chart.clientWidth || 340), stateOf, chosen: store.view().block,
      share: (unit) => (valueOf(unit) === null ? null : scale.share(valueOf(unit))),
      told: (unit) => (valueOf(unit) === null ? "" : measure.words(valueOf(unit))),
      label: `The chain of ${network.units.length} blocks, coloured by ${measure.title.toLowerCase()}`,
    });
    chart.replaceChildren(svg);
    if (focused) chart.querySelector(`g[data-name="${CSS.escape(focused)}"]`)?.focus();
    legend.replaceChildren(scaleBar(scale, measure), keyOfSigns(network));
    drawChips();
  }

  function drawChips() {
    const list = store.edits().map((edit) =>
      h("li", {}, h("code", {}, edit), h("button", { type: "button", class: "small", "aria-label": `Take back ${edit}`, onclick: () => store.setEdits(store.edits().filter((e) => e !== edit)) }, "✕")));
    chips.replaceChildren(...(list.length ? list : [h("li", { class: "none" }, "No edits: the network as it is.")]));
    for (const [button, able] of [[undo, store.canUndo()], [redo, store.canRedo()], [reset, store.edits().length > 0]]) button.disabled = !able;
  }

  async function score() {
    asked?.abort();
    const mine = (asked = new AbortController());
    waiting.begin();
    try {
      const found = await work("api/score", { edits: store.edits() }, { signal: mine.signal, onProgress: (share) => waiting.tell(share) });
      problem.show("");
      results.show(found, store.edits().length > 0);
      code.show(found.lines);
    } catch (error) {
      if (error.name === "AbortError") return;
      problem.show(`${error.message}. Undo takes the last edit back.`);
    }
    if (mine === asked) waiting.end();
  }

  async function measure(name) {
    if (Object.keys(values[name]).length || measuring.busy === name) return;
    measuring.busy = name;
    measuring.begin();
    try {
      if (name === "lesion") {
        await work("api/measures/lesion", {}, { onProgress: (share) => measuring.tell(share, `Cutting each block alone, ${Math.round(100 * share)}%`), onPartial: (part) => { Object.assign(values.lesion, part); if (store.view().measure === "lesion") draw(); inspector.draw(); } });
      } else if (name === "flops") Object.assign(values, await get("api/measures/costs"));
      else Object.assign(values, await get("api/measures/passing"));
    } catch (error) {
      problem.show(error.message);
    }
    if (measuring.busy === name) { measuring.busy = ""; measuring.end(); }
    draw();
    inspector.draw();
  }

  function act(unit, how) {
    if (how === "skip") {
      if (unit.skip === "none") return problem.show(`${unit.name} has no skip to cut: the network is plain there.`);
      const key = `shortcut:${unit.name}`;
      store.change(key, store.find(key) === `${key}=0` ? null : `${key}=0`);
    } else if (how === "block") {
      if (unit.skip === "none" && unit.opens) return problem.show(`${unit.name} changes the shape and has no skip: it cannot be cut out.`);
      const key = `block:${unit.name}`;
      store.change(key, store.find(key) === null ? key : null);
    }
    problem.show("");
  }

  chart.addEventListener("click", (event) => {
    const group = event.target.closest("g.unit");
    if (!group) return;
    const unit = network.units.find((u) => u.name === group.dataset.name);
    store.look({ block: unit.name });
    act(unit, tool);
  });
  chart.addEventListener("keydown", (event) => keys(event, network, chart, act));

  const undo = h("button", { type: "button", onclick: () => store.undo() }, "Undo");
  const redo = h("button", { type: "button", onclick: () => store.redo() }, "Redo");
  const reset = h("button", { type: "button", onclick: () => store.setEdits([]) }, "Reset");
  const choice = h("select", { onchange: (event) => { store.look({ measure: event.target.value }); } }, Object.entries(MEASURES).map(([name, m]) => h("option", { value: name }, m.title)));
  const size = h("select", { onchange: (event) => { zoom = event.target.value; draw(); } }, Object.keys(CELLS).map((name) => h("option", { value: name, selected: name === zoom }, name)));
  const tools = h("fieldset", { class: "segments" }, h("legend", { class: "unseen" }, "What a click does"), Object.entries(TOOLS).map(([name, title]) =>
    h("label", {}, h("input", { type: "radio", name: "tool", value: name, checked: name === tool, onchange: () => (tool = name) }), h("span", {}, title))));

  const savings = saving("strip", "the strip", () => svgText(chart.firstChild), () => toCsv(
    ["block", "skip", "gradient_norm", "branch_share", "lesion_damage", "flops", "parameters", "cut", "skip_scale", "branch_scale"],
    network.units.map((u) => { const st = stateOf(u); return [u.name, u.skip, ...["gradient", "share", "lesion", "flops", "parameters"].map((m) => values[m]?.[u.name] ?? null), st.cut, st.skip, st.branch]; })));

  root.append(
    h("div", { class: "head" }, h("h2", {}, "The chain of blocks"), h("p", { class: "lead" }, network.plain ? "This network has no skips: the chain is all there is." : "Each box is a branch, each arc its skip. Cut one, and the same images are answered again.")),
    h("div", { class: "bar" }, tools, h("span", { class: "group" }, undo, redo, reset), h("label", { class: "field" }, "Colour by", choice), h("label", { class: "field" }, "Size", size), savings),
    h("div", { class: "card strip-card" }, chart, legend, measuring, chips),
    problem, waiting,
    h("div", { class: "columns" }, h("div", { class: "card" }, inspector.root), h("div", { class: "card grow" }, results.root)),
    code,
  );

  new ResizeObserver(() => { if (chart.clientWidth && chart.clientWidth !== width) { width = chart.clientWidth; draw(); } }).observe(chart);
  store.onChange((what) => {
    if (store.view().panel !== "strip") return;
    choice.value = store.view().measure;
    measure(store.view().measure);
    draw();
    inspector.draw();
    if (what !== "view") score();
  });
  choice.value = store.view().measure;
  draw();
  inspector.draw();
  (async () => {
    await score();
    for (const name of [store.view().measure, "gradient", "flops"]) await measure(name);
  })();
  return { redraw: () => { draw(); inspector.draw(); results.redraw(); }, returned: () => score() };
}

function keyOfSigns(network) {
  const signs = [["identity", "solid arc: the input itself goes on"], ["changed", "dashed arc: projected, padded or pooled"], ["none", "no arc: no skip"]];
  const there = signs.filter(([kind]) => network.units.some((unit) => unit.skip === kind)).map(([, words]) => words);
  return h("p", { class: "quiet" }, `${there.join(" · ")} · bars below: the same measure · keys: arrows, S cuts the skip, X the block`);
}

// Arrows go from block to block; Enter looks, S and X cut; Ctrl-Z and Ctrl-Y undo and redo.
function keys(event, network, chart, act) {
  const group = event.target.closest("g.unit");
  if (!group) return;
  const place = network.units.findIndex((u) => u.name === group.dataset.name);
  const unit = network.units[place];
  const key = event.key.toLowerCase();
  const step = { arrowright: 1, arrowleft: -1, arrowdown: 5, arrowup: -5, home: -place, end: network.units.length - 1 - place }[key];
  if (step !== undefined) {
    const next = network.units[Math.min(Math.max(place + step, 0), network.units.length - 1)];
    store.look({ block: next.name });
    chart.querySelector(`g[data-name="${CSS.escape(next.name)}"]`).focus();
  } else if (key === "enter" || key === " ") store.look({ block: unit.name });
  else if ((event.ctrlKey || event.metaKey) && (key === "z" || key === "y")) (key === "y" || event.shiftKey ? store.redo : store.undo)();
  else if (key === "s" && !event.ctrlKey && !event.metaKey) act(unit, "skip");
  else if (key === "x" && !event.ctrlKey && !event.metaKey) act(unit, "block");
  else return;
  event.preventDefault();
}

