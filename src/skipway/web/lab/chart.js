// Line charts: uPlot on the page, the same lines as SVG for saving; and heat maps on a canvas.

import uPlot from "./vendor/uPlot.esm.js";
import { DASHES, hex, theme, viridis } from "./colours.js";
import { h, s, short, svgText } from "./dom.js";

// A chart of series {name, colour, dash} over one x. `set(columns)`: [x, y, y, ...], with nulls for gaps.
// `log`: the y axis by decades.
export function lineChart({ title, xLabel, xName = xLabel, yLabel, series, height = 220, range, log = false }) {
  const box = h("div", { class: "plot", role: "img", "aria-label": title });
  let plot = null;
  let columns = [[], ...series.map(() => [])];

  function options() {
    const colours = theme();
    const axis = { stroke: colours.soft, grid: { stroke: colours.line, width: 1 }, ticks: { stroke: colours.line, width: 1 }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 20 };
    return {
      width: box.clientWidth || 320, height, pxAlign: true,
      scales: { x: { time: false }, y: range ? { range } : log ? { distr: 3 } : {} },
      axes: [{ ...axis, label: xLabel, size: 34 }, { ...axis, label: yLabel, size: 52, values: (_, marks) => marks.map((v) => (v === null || (log && !isDecade(v)) ? "" : short(v))) }],
      series: [{ label: xName }, ...series.map((line, i) => ({ label: line.name, stroke: colourOf(line, i, colours), width: 2, dash: line.dash ?? DASHES[i % DASHES.length], points: { show: line.points ?? false, size: 6 }, spanGaps: true, value: (_, v) => short(v) }))],
      legend: { show: true, markers: { width: 3, dash: (_, i) => ((series[i - 1]?.dash ?? DASHES[(i - 1) % DASHES.length])?.length ? "dashed" : "solid") } }, cursor: { drag: { x: false, y: false } },
    };
  }

  function make() {
    plot?.destroy();
    box.replaceChildren();
    plot = new uPlot(options(), columns, box);
  }

  new ResizeObserver(() => {
    if (!box.clientWidth) return;
    if (!plot) make();
    else plot.setSize({ width: box.clientWidth, height });
  }).observe(box);

  return {
    root: box,
    set(next) {
      columns = next;
      plot?.setData(columns);
      const last = series.map((line, i) => `${line.name} ${short(next[i + 1].findLast((v) => v !== null) ?? null)}`);
      box.setAttribute("aria-label", `${title}: ${last.join(", ")}`);
    },
    redraw: () => plot && make(),
    svg: () => svgText(lineSvg({ title, xLabel, yLabel, series, columns, range, log })),
    columns: () => columns,
  };
}

const colourOf = (line, place, colours) => (line.colour ? colours[line.colour] : colours.series[place % colours.series.length]);

function marks(low, high, count = 5) {
  const raw = (high - low) / count || 1;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * ([1, 2, 5, 10].find((m) => m * unit >= raw) ?? 10);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) found.push(Number(v.toPrecision(12)));
  return found;
}

const isDecade = (v) => Number.isInteger(Number(Math.log10(v).toFixed(6)));

// Lines as an SVG element.
export function lineSvg({ title, xLabel, yLabel, series, columns, range, log = false, width = 640, height = 320 }) {
  const colours = theme();
  const [left, right, top, bottom] = [58, 16, 34 + 16, 44];
  const [x, ...raw] = columns;
  const ys = log ? raw.map((y) => y.map((v) => (v > 0 ? Math.log10(v) : null))) : raw;
  const told = log ? (v) => short(10 ** v) : short;
  const all = ys.flat().filter((v) => v !== null && Number.isFinite(v));
  let [low, high] = range ?? [Math.min(...all, Infinity), Math.max(...all, -Infinity)];
  if (!all.length) [low, high] = range ?? [0, 1];
  if (!(high > low)) [low, high] = [low - 0.5, high + 0.5];
  const [first, last] = x.length ? [x[0], x[x.length - 1] > x[0] ? x[x.length - 1] : x[0] + 1] : [0, 1];
  const px = (v) => left + ((v - first) / (last - first)) * (width - left - right);
  const py = (v) => height - bottom - ((v - low) / (high - low)) * (height - top - bottom);
  const text = (attributes, words) => s("text", { "font-size": 11, fill: colours.soft, ...attributes }, words);
  const root = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "font-family": "system-ui, sans-serif", role: "img", "aria-label": title },
    s("rect", { width, height, fill: colours.paper }), s("text", { x: left, y: 18, "font-size": 13, "font-weight": 600, fill: colours.ink }, title));
  for (const v of marks(low, high)) root.append(s("path", { d: `M${left} ${py(v)}H${width - right}`, stroke: colours.line }), text({ x: left - 6, y: py(v) + 4, "text-anchor": "end" }, told(v)));
  for (const v of marks(first, last, 6)) root.append(text({ x: px(v), y: height - bottom + 16, "text-anchor": "middle" }, short(v)));
  root.append(text({ x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, xLabel), text({ transform: `translate(14 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel));
  let legend = left;
  ys.forEach((y, i) => {
    const stroke = colourOf(series[i], i, colours);
    const dash = (series[i].dash ?? DASHES[i % DASHES.length]).join(" ") || null;
    let pen = "M";
    const d = x.map((v, j) => (y[j] === null || !Number.isFinite(y[j]) ? "" : `${pen}${px(v).toFixed(1)} ${py(Math.min(Math.max(y[j], low), high)).toFixed(1)}${((pen = "L"), "")}`)).join("");
    if (d) root.append(s("path", { d, fill: "none", stroke, "stroke-width": 2, "stroke-dasharray": dash, "stroke-linejoin": "round" }));
    root.append(s("path", { d: `M${legend} 32h22`, stroke, "stroke-width": 2, "stroke-dasharray": dash }), text({ x: legend + 27, y: 36, fill: colours.ink }, series[i].name));
    legend += 44 + 7 * series[i].name.length;
  });
  return root;
}

// Paired bars of classes as SVG text: outline before, filled after.
export function barsSvg(rows) {
  const colours = theme();
  const height = 24 + 20 * rows.length;
  const root = s("svg", { viewBox: `0 0 480 ${height}`, width: 480, height, "font-family": "system-ui, sans-serif" }, s("rect", { width: 480, height, fill: colours.paper }), s("text", { x: 8, y: 16, "font-size": 12, "font-weight": 600, fill: colours.ink }, "accuracy by class: outline before, filled after"));
  rows.forEach((row, i) => {
    const y = 26 + 20 * i;
    root.append(s("text", { x: 100, y: y + 11, "font-size": 11, "text-anchor": "end", fill: colours.ink }, row.name), s("rect", { x: 108, y, width: 280 * row.after, height: 13, fill: colours.accent }), s("rect", { x: 108, y, width: 280 * row.before, height: 13, fill: "none", stroke: colours.ink }), s("text", { x: 396, y: y + 11, "font-size": 11, fill: colours.soft }, `${(100 * row.before).toFixed(1)} → ${(100 * row.after).toFixed(1)}%`));
  });
  return svgText(root);
}

// A heat map: rows of shares in [0, 1] (null: nothing), the first row on top, drawn on a canvas.
export function heatMap(label) {
  const canvas = h("canvas", { class: "heat", role: "img", "aria-label": label });
  return {
    root: canvas,
    set(rows, words) {
      const [height, width] = [rows.length, rows[0]?.length ?? 0];
      if (!height || !width) return;
      canvas.width = width;
      canvas.height = height;
      const pen = canvas.getContext("2d");
      const image = pen.createImageData(width, height);
      rows.forEach((row, y) => row.forEach((share, x) => {
        if (share === null) return;
        const [red, green, blue] = viridis(share);
        image.data.set([red, green, blue, 255], 4 * (y * width + x));
      }));
      pen.putImageData(image, 0, 0);
      canvas.setAttribute("aria-label", `${label}: ${words}`);
    },
  };
}

// Heat maps below each other as SVG text; equal neighbours become one rectangle.
export function heatSvg(maps, { xLabel, yLabel, scale }) {
  const colours = theme();
  const [width, tall, gap] = [600, 160, 44];
  const root = s("svg", { viewBox: `0 0 ${width + 80} ${maps.length * (tall + gap) + 40}`, width: width + 80, height: maps.length * (tall + gap) + 40, "font-family": "system-ui, sans-serif" }, s("rect", { width: "100%", height: "100%", fill: colours.paper }));
  maps.forEach(({ title, rows }, n) => {
    const top = 24 + n * (tall + gap);
    root.append(s("text", { x: 50, y: top - 8, "font-size": 12, "font-weight": 600, fill: colours.ink }, title));
    const [dx, dy] = [width / (rows[0]?.length || 1), tall / rows.length];
    rows.forEach((row, y) => {
      let start = 0;
      const fills = row.map((v) => (v === null ? null : hex(viridis(Math.round(v * 40) / 40))));
      fills.forEach((fill, x) => {
        if (fill === fills[x + 1]) return;
        if (fill) root.append(s("rect", { x: (50 + start * dx).toFixed(2), y: (top + y * dy).toFixed(2), width: ((x + 1 - start) * dx + 0.3).toFixed(2), height: (dy + 0.3).toFixed(2), fill }));
        start = x + 1;
      });
    });
    root.append(s("text", { transform: `translate(40 ${top + tall / 2}) rotate(-90)`, "font-size": 11, "text-anchor": "middle", fill: colours.soft }, yLabel));
  });
  root.append(s("text", { x: 50, y: maps.length * (tall + gap) + 10, "font-size": 11, fill: colours.soft }, `${xLabel} · colours: ${scale}`));
  return svgText(root);
}
