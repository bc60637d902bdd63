// A plane of losses as an SVG: cells, contours, the path of training, the weights, and the point that was asked about.

import { hex, theme, viridis } from "./colours.js";
import { s, short } from "./dom.js";
import { scaleOf } from "./scale.js";

const [SIZE, LEFT, TOP, BOTTOM] = [360, 44, 10, 76];
const LEVELS = 9; // of contours
const DECADES = 1e4; // of the loss that are told apart

const pixels = (found) => {
  const span = found.grid.at(-1);
  return { x: (v) => LEFT + ((v + span) / (2 * span)) * SIZE, y: (v) => TOP + SIZE - ((v + span) / (2 * span)) * SIZE };
};

// Where in the plane a click was, or null beside it.
export function placeOf(event, svg, found) {
  const frame = svg.getBoundingClientRect();
  const scale = (LEFT + SIZE + 14) / frame.width;
  const span = found.grid.at(-1);
  const cell = SIZE / found.grid.length;
  const along = (pixel, start) => ((pixel * scale - start - cell / 2) / (SIZE - cell)) * 2 * span - span;
  const [x, y] = [along(event.clientX - frame.left, LEFT), -along(event.clientY - frame.top, TOP)];
  const edge = (span * SIZE) / (SIZE - cell); // of the outermost cells
  const inside = Math.max(Math.abs(x), Math.abs(y)) <= edge;
  return inside ? [x, y].map((v) => Math.min(Math.max(v, -span), span)) : null;
}

export function drawPlane(found, spot) {
  const colours = theme();
  const { grid, losses } = found;
  const at = pixels(found);
  const finite = losses.flat().filter((v) => v !== null);
  const least = Math.max(Math.min(...finite), 1e-6);
  const scale = scaleOf(finite.map((v) => Math.min(v, least * DECADES)), { log: true });
  const cell = SIZE / grid.length;
  const lowest = Math.min(...finite);
  const root = s("svg", { viewBox: `0 0 ${LEFT + SIZE + 14} ${TOP + SIZE + BOTTOM}`, width: LEFT + SIZE + 14, height: TOP + SIZE + BOTTOM, role: "img", "font-family": "system-ui, sans-serif",
    "aria-label": `The loss over the plane, ${grid.length} by ${grid.length} places: from ${short(lowest)} to ${short(Math.max(...finite))} nats` },
    s("rect", { width: "100%", height: "100%", fill: colours.paper }));
  losses.forEach((row, j) => row.forEach((value, i) => root.append(s("rect", {
    x: (LEFT + i * cell).toFixed(2), y: (TOP + SIZE - (j + 1) * cell).toFixed(2), width: (cell + 0.3).toFixed(2), height: (cell + 0.3).toFixed(2), fill: value === null ? colours.line : hex(viridis(scale.share(value))), "shape-rendering": "crispEdges",
  }))));
  // cell centres are the places: contours and marks use the same frame
  const px = (v) => LEFT + cell / 2 + ((at.x(v) - LEFT) / SIZE) * (SIZE - cell);
  const py = (v) => TOP + cell / 2 + ((at.y(v) - TOP) / SIZE) * (SIZE - cell);
  for (let level = 1; level <= LEVELS; level += 1) {
    const value = scale.least * (scale.most / scale.least) ** (level / (LEVELS + 1));
    root.append(s("path", { d: contour(grid, losses, value, px, py), fill: "none", stroke: "#ffffff", "stroke-opacity": 0.75, "stroke-width": 0.9 }));
  }
  const steps = (found.path ?? []).filter((step) => Math.max(Math.abs(step.x), Math.abs(step.y)) <= grid.at(-1));
  if (steps.length) {
    const line = steps.map((step, i) => `${i ? "L" : "M"}${px(step.x).toFixed(1)} ${py(step.y).toFixed(1)}`).join("");
    root.append(s("path", { d: line, fill: "none", stroke: "#000000", "stroke-width": 3.5 }), s("path", { d: line, fill: "none", stroke: "#ffffff", "stroke-width": 1.8 }));
    steps.forEach((step) => root.append(s("circle", { cx: px(step.x), cy: py(step.y), r: 3, fill: "#ffffff", stroke: "#000000" }, s("title", {}, step.name))));
  }
  root.append(s("path", { d: `M${px(0) - 6} ${py(0)}h12M${px(0)} ${py(0) - 6}v12`, stroke: "#000000", "stroke-width": 4 }), s("path", { d: `M${px(0) - 6} ${py(0)}h12M${px(0)} ${py(0) - 6}v12`, stroke: "#ffffff", "stroke-width": 2 }));
  if (spot) root.append(s("circle", { cx: px(spot.x), cy: py(spot.y), r: 7, fill: "none", stroke: "#000000", "stroke-width": 4 }), s("circle", { cx: px(spot.x), cy: py(spot.y), r: 7, fill: "none", stroke: "#ffffff", "stroke-width": 2 }));
  axes(root, found, px, py, colours);
  legend(root, scale, colours, steps.length > 0);
  return root;
}

function axes(root, found, px, py, colours) {
  const span = found.grid.at(-1);
  const text = (attributes, words) => root.append(s("text", { "font-size": 11, fill: colours.soft, ...attributes }, words));
  for (const v of [-span, 0, span]) {
    text({ x: px(v), y: TOP + SIZE + 15, "text-anchor": v < 0 ? "start" : v > 0 ? "end" : "middle" }, short(v));
    text({ x: LEFT - 6, y: py(v) + 4, "text-anchor": "end" }, short(v));
  }
  text({ x: LEFT + SIZE / 2, y: TOP + SIZE + 30, "text-anchor": "middle" }, "first direction, x");
  text({ transform: `translate(12 ${TOP + SIZE / 2}) rotate(-90)`, "text-anchor": "middle" }, "second direction, y");
}

function legend(root, scale, colours, path) {
  const y = TOP + SIZE + 44;
  for (let i = 0; i < 10; i += 1) root.append(s("rect", { x: LEFT + 44 + i * 12, y, width: 12.5, height: 9, fill: hex(viridis(i / 9)) }));
  const text = (x, words, anchor = "start") => root.append(s("text", { x, y: y + 9, "font-size": 11, fill: colours.soft, "text-anchor": anchor }, words));
  text(LEFT + 40, short(scale.least), "end");
  text(LEFT + 170, `${short(scale.most)}  loss, nats, logarithmic`);
  root.append(s("text", { x: LEFT, y: y + 26, "font-size": 11, fill: colours.soft }, `+ the weights  ○ the point asked about${path ? "  •–• checkpoints" : ""}`));
}

// Marching squares: the line where the loss has a value, straight within each cell.
function contour(grid, losses, value, px, py) {
  const parts = [];
  for (let j = 0; j + 1 < grid.length; j += 1) {
    for (let i = 0; i + 1 < grid.length; i += 1) {
      const corners = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]];
      const heights = corners.map(([a, b]) => losses[b][a]);
      if (heights.includes(null)) continue;
      const crossed = [];
      corners.forEach(([a, b], k) => {
        const [c, d] = corners[(k + 1) % 4];
        const [low, high] = [heights[k], heights[(k + 1) % 4]];
        if (low < value === high < value) return;
        const t = (value - low) / (high - low);
        crossed.push(`${px(grid[a] + t * (grid[c] - grid[a])).toFixed(1)} ${py(grid[b] + t * (grid[d] - grid[b])).toFixed(1)}`);
      });
      for (let k = 0; k + 1 < crossed.length; k += 2) parts.push(`M${crossed[k]}L${crossed[k + 1]}`);
    }
  }
  return parts.join("");
}
