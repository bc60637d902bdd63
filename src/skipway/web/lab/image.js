// One image: dropped or chosen; where each stage sees a class in it, and how the answer forms block by block.

import { work } from "./api.js";
import { theme, viridis } from "./colours.js";
import { lineSvg } from "./chart.js";
import { h, message, percent, progress, python, saving, svgText, s, toCsv } from "./dom.js";

const FIRST = 24; // images offered
const LIMIT = 16 * 2 ** 20;
const TOP = 5;

export function imagePanel(network, root) {
  let chosen = { seen: 0 };
  let label = null;
  let kind = "grad_cam";
  let found = null;
  let offered = FIRST;
  let asked = null;

  const problem = message();
  const waiting = progress("Looking at the image");
  const out = h("div", { class: "explained", "aria-live": "polite" });
  const code = python("this image");
  const picks = h("div", { class: "picks", role: "group", "aria-label": "Images of the validation split" });
  const file = h("input", { type: "file", id: "image-file", class: "unseen", accept: "image/png,image/jpeg,image/webp,image/gif,image/bmp", onchange: () => { if (file.files[0]) take(file.files[0]); file.value = ""; } });
  const drop = h("label", { class: "drop", for: "image-file" }, h("strong", {}, "Drop an image here"), h("span", {}, " or choose a file: JPEG, PNG, GIF, WebP or BMP, up to 16 MiB"));
  const dropping = h("div", {}, file, drop);

  for (const name of ["dragenter", "dragover"]) dropping.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) dropping.addEventListener(name, (event) => { event.preventDefault(); drop.classList.remove("over"); });
  dropping.addEventListener("drop", (event) => { const dropped = event.dataTransfer.files[0]; if (dropped) take(dropped); else problem.show("That is no file: drop an image from your disk."); });

  async function take(given) {
    if (given.size > LIMIT) return problem.show(`${given.name} is larger than the 16 MiB that are taken.`);
    waiting.begin();
    try {
      chosen = await work("api/image", given);
      label = null;
      problem.show("");
      await look();
    } catch (error) {
      problem.show(`${given.name}: ${error.message}.`);
    }
    waiting.end();
  }

  async function look() {
    asked?.abort();
    const mine = (asked = new AbortController());
    waiting.begin();
    drawPicks();
    try {
      found = await work("api/explain", { ...chosen, ...(label === null ? {} : { label }) }, { signal: mine.signal, onProgress: (share) => waiting.tell(share) });
      problem.show("");
      code.show(found.lines);
      draw();
    } catch (error) {
      if (error.name === "AbortError") return;
      problem.show(`${error.message}.`);
    }
    if (mine === asked) waiting.end();
  }

  function drawPicks() {
    const count = Math.min(offered, network.images);
    const nodes = Array.from({ length: count }, (_, i) => h("button", { type: "button", class: "pick", "aria-pressed": chosen.seen === i, "aria-label": `image ${i + 1}${network.labels.length ? `, ${network.classes[network.labels[i]]}` : ""}`, onclick: () => { chosen = { seen: i }; label = null; look(); } }, h("img", { src: `api/seen/${i}.png`, alt: "", width: 44, height: 44, loading: "lazy" })));
    if (count < network.images) nodes.push(h("button", { type: "button", class: "small", onclick: () => { offered += 48; drawPicks(); } }, "More"));
    const focused = [...picks.children].indexOf(document.activeElement);
    picks.replaceChildren(...nodes);
    if (focused >= 0) picks.children[focused]?.focus();
  }

  const source = () => (chosen.upload ? `api/image/${chosen.upload}.png` : `api/seen/${chosen.seen}.png`);
  const ranked = () => found.probabilities.map((p, k) => [k, p]).sort((a, b) => b[1] - a[1]);

  function draw() {
    if (!found) return;
    const truth = found.truth.map((k) => network.classes[k]).join(", ");
    out.replaceChildren(
      h("div", { class: "columns" },
        h("div", { class: "card" }, h("h3", {}, "The image"), h("img", { class: "big", src: source(), alt: truth ? `the image, which is ${truth}` : "the image that was dropped", width: 180, height: 180 }), h("p", { class: "quiet" }, truth ? `It is: ${truth}` : "Nobody said what it is.")),
        h("div", { class: "card grow" }, h("h3", {}, "The answer"), answers())),
      maps(), forming());
  }

  function answers() {
    const rows = ranked().slice(0, TOP).map(([k, p]) => {
      const bar = h("span", { class: "track", "aria-hidden": "true" }, h("span", { class: "now" }));
      bar.firstChild.style.width = `${100 * p}%`;
      return h("tr", {}, h("th", { scope: "row" }, network.classes[k], found.truth.includes(k) ? " ✓" : ""), h("td", { class: "bar-cell" }, bar), h("td", {}, percent(p)));
    });
    return h("table", { class: "bars" }, h("caption", { class: "unseen" }, "The most probable classes"), h("tbody", {}, rows));
  }

  function maps() {
    if (!found.maps) return h("div", { class: "card" }, h("h3", {}, "Where each stage sees it"), h("p", {}, `There are no maps: ${found.without_maps}.`));
    const current = label ?? found.maps.label;
    const pick = h("select", { onchange: (event) => { label = Number(event.target.value); look(); } }, network.classes.map((name, k) => h("option", { value: k, selected: k === current }, name)));
    const way = h("select", { onchange: (event) => { kind = event.target.value; draw(); } }, [["grad_cam", "Grad-CAM"], ["layer_cam", "LayerCAM"]].map(([k, w]) => h("option", { value: k, selected: k === kind }, w)));
    const list = found.maps.stages.map((stage) => {
      const canvas = h("canvas", { class: "cam", width: 180, height: 180, role: "img", "aria-label": `${stage.layer}: ${stage.peak > 0 ? `speaks for ${network.classes[current]} most at ${strongest(stage[kind])}` : "nothing here speaks for the class"}` });
      paint(canvas, stage[kind]);
      return h("figure", {}, canvas, h("figcaption", {}, stage.layer.replace(".output", ""), h("span", { class: "quiet" }, stage.peak > 0 ? ` ${stage.grad_cam.length} × ${stage.grad_cam[0].length}` : " nothing here")));
    });
    return h("div", { class: "card" },
      h("div", { class: "title-row" }, h("h3", {}, "Where each stage sees it"), h("span", { class: "group" }, h("label", { class: "field" }, "Class", pick), h("label", { class: "field" }, "Map", way), saving("maps", "the maps", mapsSvg, mapsCsv))),
      h("p", { class: "quiet" }, "Bright is what speaks for the class, each map scaled by its own greatest value."), h("div", { class: "cams" }, list));
  }

  function paint(canvas, grid) {
    const picture = new Image();
    picture.onload = () => {
      const pen = canvas.getContext("2d");
      const side = canvas.width;
      const small = new OffscreenCanvas(grid[0].length, grid.length);
      const dots = small.getContext("2d");
      const data = dots.createImageData(small.width, small.height);
      grid.flat().forEach((value, i) => data.data.set([...viridis(value / 255), 40 + Math.round(0.75 * value)], 4 * i));
      dots.putImageData(data, 0, 0);
      pen.imageSmoothingEnabled = false;
      pen.filter = "grayscale(1)";
      pen.drawImage(picture, 0, 0, side, side);
      pen.filter = "none";
      pen.imageSmoothingEnabled = true;
      pen.drawImage(small, 0, 0, side, side);
    };
    picture.src = source();
  }

  const mapsCsv = () => toCsv(["layer", "map", "row", "column", "value"], found.maps.stages.flatMap((stage) => ["grad_cam", "layer_cam"].flatMap((map) => stage[map].flatMap((row, y) => row.map((v, x) => [stage.layer, map, y, x, v])))));

  function mapsSvg() {
    const colours = theme();
    const side = 160;
    const root = s("svg", { viewBox: `0 0 ${found.maps.stages.length * (side + 16) + 16} ${side + 48}`, width: found.maps.stages.length * (side + 16) + 16, height: side + 48, "font-family": "system-ui, sans-serif" }, s("rect", { width: "100%", height: "100%", fill: colours.paper }));
    found.maps.stages.forEach((stage, n) => {
      const grid = stage[kind];
      const cell = side / Math.max(grid.length, grid[0].length);
      grid.forEach((row, y) => row.forEach((v, x) => root.append(s("rect", { x: (16 + n * (side + 16) + x * cell).toFixed(2), y: (16 + y * cell).toFixed(2), width: (cell + 0.2).toFixed(2), height: (cell + 0.2).toFixed(2), fill: `rgb(${viridis(v / 255).join(",")})` }))));
      root.append(s("text", { x: 16 + n * (side + 16), y: side + 36, "font-size": 12, fill: colours.ink }, stage.layer));
    });
    return svgText(root);
  }

  function forming() {
    const { blocks, probabilities } = found.forming;
    const shown = ranked().slice(0, 4).map(([k]) => k);
    const chart = { title: "The answer forming, block by block", xLabel: "blocks from the image on; those after are cut", yLabel: "probability", series: shown.map((k) => ({ name: network.classes[k] })), columns: [probabilities.map((_, i) => i), ...shown.map((k) => probabilities.map((row) => row[k]))], range: [0, 1], width: Math.min(Math.max(root.clientWidth - 34, 320), 1100), height: 280 };
    const csv = () => toCsv(["after", ...network.classes], probabilities.map((row, i) => [i ? blocks[i - 1] : "no branch", ...row]));
    const settled = lastChange(probabilities);
    return h("div", { class: "card" }, h("div", { class: "title-row" }, h("h3", {}, "The answer forming"), saving("forming", "the forming answer", () => svgText(lineSvg(chart)), csv)),
      h("p", { class: "quiet" }, `What the head reads after each block, when the later ones are cut; those that open a stage stay, since they bring the shape. ${settled === 0 ? "The first answer is the last one." : `The answer is settled from ${blocks[settled - 1]} on.`}`),
      h("div", { class: "wide" }, lineSvg(chart)));
  }

  root.append(h("div", { class: "head" }, h("h2", {}, "One image"), h("p", { class: "lead" }, "Where the network sees a class, stage by stage, and how its answer forms from block to block.")), h("div", { class: "card" }, picks, dropping), problem, waiting, out, code);
  drawPicks();
  look();
  return { redraw: draw, returned: (anew) => { if (anew && chosen.upload) chosen = { seen: 0 }; look(); } };
}

function strongest(grid) {
  let best = [0, 0];
  grid.forEach((row, y) => row.forEach((v, x) => { if (v > grid[best[0]][best[1]]) best = [y, x]; }));
  return `row ${best[0] + 1} of ${grid.length}, column ${best[1] + 1} of ${grid[0].length}`;
}

// From which row on the most probable class stays what it is at the end.
function lastChange(rows) {
  const best = rows.map((row) => row.indexOf(Math.max(...row)));
  let place = best.length - 1;
  while (place > 0 && best[place - 1] === best[best.length - 1]) place -= 1;
  return place;
}
