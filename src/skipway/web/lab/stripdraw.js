// The chain of blocks as one SVG: a box for each branch, an arc for its skip, below it a bar for the measure.

import { hex, theme, viridis } from "./colours.js";
import { s } from "./dom.js";

const TOP = 30; // of a row: the stage's name
const TRUNK = 48; // the chain, below the row's name
const BAR = 36; // pixels of the longest bar
const BELOW = 26; // from the chain to where bars may begin
const ROW = TOP + TRUNK + BELOW + BAR + 18;

const gapOf = (cell) => (cell >= 40 ? 26 : 16);

// The greatest cell with which all stands in one row; else that with which the longest stage fills whole rows.
export function fitting(units, width) {
  const stages = units.at(-1).stage;
  const together = Math.floor((width - 6 - stages * gapOf(48)) / units.length);
  if (together >= 34) return Math.min(together, 84);
  const longest = Math.max(...units.map((unit) => units.filter((other) => other.stage === unit.stage).length));
  const rows = Math.ceil((longest * (units.length > 100 ? 24 : 34)) / (width - 6));
  return Math.min(Math.floor((width - 6) / Math.ceil(longest / rows)), 64);
}

// Where each unit stands: stages side by side where they fit, each wrapped where it does not.
export function layout(units, width, cell) {
  const perRow = Math.max(Math.floor((width - 4) / cell), 1);
  const gap = gapOf(cell);
  const places = [];
  const names = [];
  let x = 2;
  let row = 0;
  let stage = -1;
  units.forEach((unit) => {
    if (unit.stage !== stage) {
      const length = units.filter((u) => u.stage === unit.stage).length;
      const needed = length * cell;
      if (stage >= 0) {
        x += gap;
        if (x + Math.min(needed, perRow * cell) > width) { x = 2; row += 1; }
      }
      stage = unit.stage;
      names.push({ x, row, stage, unit });
    }
    if (x + cell > width) { x = 2; row += 1; }
    places.push({ x, row });
    x += cell;
  });
  const right = Math.max(...places.map((place) => place.x)) + cell + 2;
  return { places, names, height: (row + 1) * ROW, width: Math.min(Math.max(right, 60), Math.max(width, cell + 4)) };
}

const sizeOf = (shape) => (shape.length === 3 ? `${shape[0]} × ${shape[1]} × ${shape[2]}` : shape.join(" × "));

export function describe(unit, value, state) {
  const parts = [unit.name, unit.skip === "none" ? "no skip" : unit.skip === "identity" ? "identity skip" : "skip that changes the shape"];
  if (state.cut) parts.push("block cut");
  if (state.skip === 0) parts.push("skip cut");
  else if (state.skip < 1) parts.push(`skip at ${state.skip}`);
  if (state.branch < 1 && !state.cut) parts.push(`branch at ${state.branch}`);
  if (value) parts.push(value);
  return parts.join(", ");
}

// A cell's drawing, at the origin. `share`: of the colour scale, or null; `state`: {cut, skip, branch}.
function cellOf(unit, cell, share, state, chosen, colours) {
  const middle = cell / 2 - 3;
  const half = Math.min(cell * 0.24, 15);
  const end = cell - 7;
  const y = TRUNK;
  const parts = [];
  const fill = share === null ? colours.line : hex(viridis(share));
  const quiet = { stroke: colours.faint, "stroke-dasharray": "2 3" };
  const flow = { stroke: colours.soft };
  parts.push(s("path", { d: `M0 ${y}H${middle - half}M${middle + half} ${y}H${cell}`, fill: "none", "stroke-width": 1.5, ...(state.cut && unit.skip !== "none" ? quiet : flow) }));
  if (unit.skip === "none") parts.push(s("path", { d: `M${middle - half} ${y}H${middle + half}`, stroke: colours.soft, "stroke-width": state.cut ? 1.5 : 0 }));
  else {
    const look = state.skip === 0 ? quiet : { stroke: colours.accent, "stroke-dasharray": unit.skip === "changed" ? "5 3" : null };
    parts.push(s("path", { d: `M2 ${y}C2 ${y - 44} ${end} ${y - 44} ${end} ${y}`, fill: "none", "stroke-width": state.skip === 0 ? 1.2 : 0.8 + 1.4 * state.skip, ...look }));
    parts.push(s("circle", { cx: end, cy: y, r: 4, fill: colours.paper, stroke: colours.soft, "stroke-width": 1.2 }));
    parts.push(s("path", { d: `M${end - 2.2} ${y}h4.4M${end} ${y - 2.2}v4.4`, stroke: colours.soft, "stroke-width": 1.2 }));
    if (state.skip === 0) parts.push(scissors(end / 2 + 1, y - 33, colours));
  }
  const box = { x: middle - half, y: y - half, width: 2 * half, height: 2 * half, rx: 3 };
  if (state.cut) {
    parts.push(s("rect", { ...box, fill: colours.paper, ...quiet, "stroke-width": 1.2 }));
    parts.push(s("path", { d: `M${middle - 5} ${y - 5}l10 10m0 -10l-10 10`, stroke: colours.ink, "stroke-width": 2, "stroke-linecap": "round" }));
  } else {
    parts.push(s("rect", { ...box, fill: colours.paper, stroke: colours.ink, "stroke-width": 1 }));
    const height = 2 * half * state.branch;
    if (height > 0) parts.push(s("rect", { ...box, y: y + half - height, height, rx: Math.min(3, height / 2), fill, stroke: colours.ink, "stroke-width": 1 }));
  }
  const bar = share === null ? 0 : Math.max(BAR * share, 1.5);
  const ground = y + BELOW + BAR;
  if (bar) parts.push(s("rect", { x: middle - half / 2, y: ground - bar, width: half, height: bar, fill: colours.soft }));
  parts.push(s("path", { d: `M0 ${ground}H${cell}`, stroke: colours.line, "stroke-width": 1 }));
  if (chosen) parts.push(s("path", { d: `M${middle - half} ${ground + 5}h${2 * half}`, stroke: colours.accent, "stroke-width": 3, "stroke-linecap": "round" }));
  return parts;
}

export function scissors(x, y, colours) {
  return s(
    "g", { transform: `translate(${x} ${y})`, fill: "none", stroke: colours.ink, "stroke-width": 1.3, "stroke-linecap": "round" },
    s("circle", { cx: 0, cy: 0, r: 8, fill: colours.paper, stroke: "none" }),
    s("circle", { cx: -3, cy: 4, r: 1.9 }), s("circle", { cx: 3, cy: 4, r: 1.9 }), s("path", { d: "M-2 2.4L3 -5M2 2.4L-3 -5" }),
  );
}

// The whole strip. `share(unit)` in [0, 1] or null, `told(unit)`: the measure in words, `stateOf(unit)`.
export function drawStrip({ units, width, cell, share, told, stateOf, chosen, label }) {
  const colours = theme();
  const plan = layout(units, width, cell);
  const root = s("svg", { viewBox: `0 0 ${plan.width} ${plan.height}`, width: plan.width, height: plan.height, role: "group", "aria-label": label, "font-family": "system-ui, sans-serif", class: "strip" });
  for (const { x, row, stage, unit } of plan.names) {
    const room = units.filter((u) => u.stage === stage).length * cell; // the shape only where there is room for it
    root.append(s("text", { x, y: row * ROW + 16, "font-size": 12, fill: colours.ink, "font-weight": 600 }, `stage ${stage + 1}`, room > 130 ? s("tspan", { fill: colours.soft, "font-weight": 400, dx: 6 }, sizeOf(unit.out_shape)) : ""));
  }
  units.forEach((unit, place) => {
    const { x, row } = plan.places[place];
    const state = stateOf(unit);
    const selected = unit.name === chosen;
    const group = s("g", { transform: `translate(${x} ${row * ROW + TOP})`, class: "unit", role: "button", tabindex: selected || (!chosen && place === 0) ? 0 : -1, "aria-pressed": selected, "aria-label": describe(unit, told(unit), state), "data-name": unit.name });
    group.append(s("rect", { x: 0, y: 2, width: cell, height: TRUNK + BELOW + BAR + 8, rx: 5, fill: "transparent", class: "ring" }), ...cellOf(unit, cell, share(unit), state, selected, colours), s("title", {}, describe(unit, told(unit), state)));
    root.append(group);
  });
  return root;
}
