// What edits did to the answers: accuracy before and after, class by class, and the images whose answer flipped.

import { h, percent, points, saving, short, toCsv } from "./dom.js";
import { barsSvg } from "./chart.js";

const MOST = 20; // classes shown
const TURNED = { wrong: "now wrong", right: "now right", other: "wrong either way" };

export function makeResults(network) {
  const root = h("div", { class: "results", "aria-live": "polite" });
  let last = null;

  function show(found, edited) {
    last = [found, edited];
    const change = found.after - found.before;
    const numbers = h("div", { class: "numbers" },
      number("accuracy as it is", percent(found.before)),
      number("with the edits", edited ? percent(found.after) : "–", "after"),
      number("difference", edited ? `${points(change)} points` : "–"),
      number("loss", edited ? `${nats(found.loss_before)} → ${nats(found.loss_after)}` : nats(found.loss_before)));
    const parts = [h("h3", {}, "The answers"), h("p", { class: "quiet" }, `On ${found.images} images of the validation split.`), numbers];
    if (edited) parts.push(classes(found), flips(found));
    else parts.push(h("p", { class: "quiet" }, "Cut something, and each class and each image whose answer flips is shown here."));
    root.replaceChildren(...parts);
  }

  function classes(found) {
    const rows = found.classes.map(([images, before, after], k) => ({ name: network.classes[k], images, before, after })).filter((row) => row.images);
    const worst = rows.length > MOST ? [...rows].sort((a, b) => a.after - a.before - (b.after - b.before)).slice(0, MOST) : rows;
    const title = rows.length > MOST ? `The ${MOST} classes of ${rows.length} that lost most` : "Class by class";
    const csv = () => toCsv(["class", "images", "accuracy_before", "accuracy_after"], rows.map((r) => [r.name, r.images, r.before, r.after]));
    const picture = () => barsSvg(worst);
    return h("div", {}, h("div", { class: "title-row" }, h("h4", {}, title), saving("classes", "the classes", picture, csv)),
      h("table", { class: "bars" }, h("caption", { class: "unseen" }, "Accuracy of each class, before and after"),
        h("thead", { class: "unseen" }, h("tr", {}, ["class", "bar", "before", "after", "points"].map((t) => h("th", { scope: "col" }, t)))),
        h("tbody", {}, worst.map((row) => h("tr", {}, h("th", { scope: "row" }, row.name), h("td", { class: "bar-cell" }, bar(row)), h("td", {}, percent(row.before)), h("td", {}, percent(row.after)), h("td", { class: row.after < row.before - 5e-4 ? "loss" : "" }, points(row.after - row.before)))))));
  }

  function bar(row) {
    const outer = h("span", { class: "track", "aria-hidden": "true" }, h("span", { class: "was" }), h("span", { class: "now" }));
    outer.children[0].style.width = `${100 * row.before}%`;
    outer.children[1].style.width = `${100 * row.after}%`;
    return outer;
  }

  function flips(found) {
    if (!found.num_flipped) return h("p", { class: "quiet" }, "No image's answer flipped.");
    const shown = found.flipped.length < found.num_flipped ? `, ${found.flipped.length} of them here` : "";
    const one = (f) => h("li", {},
      h("img", { src: `api/seen/${f.image}.png`, alt: `image ${f.name}`, width: 56, height: 56 }),
      h("span", { class: `turn ${f.turned}` }, `${{ wrong: "✕", right: "✓", other: "~" }[f.turned]} ${TURNED[f.turned]}`),
      h("span", {}, `${f.before} → ${f.after}`),
      h("span", { class: "quiet" }, `is ${f.truth}`));
    return h("div", {}, h("h4", {}, `${found.num_flipped} answers flipped${shown}`), h("ul", { class: "flips" }, found.flipped.map(one)));
  }

  return { root, show, redraw: () => last && show(...last) };
}

const nats = (loss) => (loss === null ? "no number" : loss < 1000 ? loss.toFixed(3) : short(loss));

const number = (label, value, kind = "") => h("div", { class: `number ${kind}` }, h("span", { class: "value" }, value), h("span", { class: "quiet" }, label));
