// From values to shares of a colour scale, and the bar that explains it.

import { h, s, short } from "./dom.js";
import { hex, theme, viridis } from "./colours.js";

// `log` where values span decades; `low`, `high` fix an end.
export function scaleOf(values, { log = false, low, high } = {}) {
  const usable = log ? values.filter((v) => v > 0) : values;
  let least = low ?? Math.min(...usable);
  let most = high ?? Math.max(...usable);
  if (!usable.length) return { least: 0, most: 0, empty: true, share: () => 0 };
  if (!(most > least)) most = least + (least ? Math.abs(least) * 0.1 : 1);
  const place = log ? (v) => Math.log(Math.max(v, least)) : (v) => v;
  const [a, b] = [place(least), place(most)];
  return { least, most, empty: false, share: (v) => Math.min(Math.max((place(v) - a) / (b - a), 0), 1) };
}

export function scaleBar(scale, { title, about, log }) {
  const colours = theme();
  const stops = Array.from({ length: 10 }, (_, i) => s("rect", { x: i * 12, y: 0, width: 12.5, height: 10, fill: hex(viridis(i / 9)) }));
  const percentages = title === "Lesion damage";
  const words = (v) => (percentages ? `${(100 * v).toFixed(1)} points` : short(v));
  return h(
    "p", { class: "scale" }, h("strong", {}, title), h("span", { class: "quiet" }, ` ${about}${log ? ", logarithmic" : ""}`),
    scale.empty ? h("span", { class: "quiet" }, "not measured yet") : h("span", { class: "ramp" }, h("span", {}, words(scale.least)), s("svg", { width: 120, height: 10, viewBox: "0 0 120 10", "aria-hidden": "true", stroke: colours.line, "stroke-width": 0 }, stops), h("span", {}, words(scale.most))),
  );
}
