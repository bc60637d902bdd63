// One block: what it is, what is measured of it, and its three controls.

import { h, short } from "./dom.js";
import * as store from "./store.js";

const SKIPS = { identity: "identity", changed: "changes the shape (projected, padded or pooled)", none: "none: plain" };
const size = (shape) => shape.join(" × ");

export function makeInspector(network, values) {
  const root = h("div", { class: "inspector" });
  const slide = h("input", { type: "range", min: 0, max: 1, step: 0.05, id: "branch-scale" });
  const told = h("output", { for: "branch-scale" });
  let sliding = false;
  let drawn = "";

  slide.addEventListener("input", () => {
    const key = `branch:${store.view().block}`;
    const value = Number(slide.value);
    told.textContent = value.toFixed(2);
    store.change(key, value === 1 ? null : `${key}=${Number(value.toFixed(2))}`, { whileSliding: sliding });
    sliding = true;
  });
  slide.addEventListener("change", () => (sliding = false));

  function toggle(title, key, edit, able, why) {
    const on = store.find(key) === edit;
    return h("button", { type: "button", class: "toggle", "aria-pressed": on, disabled: !able, title: able ? null : why, onclick: () => store.change(key, on ? null : edit) }, title);
  }

  function draw() {
    const unit = network.units.find((u) => u.name === store.view().block);
    if (!unit) {
      drawn = "";
      root.replaceChildren(h("h3", {}, "A block"), h("p", { class: "quiet" }, "Choose a block in the chain to look at it, and to cut its skip, cut it out, or scale its branch."));
      return;
    }
    const facts = [
      ["in → out", `${size(unit.in_shape)} → ${size(unit.out_shape)}`],
      ["skip", SKIPS[unit.skip]],
      ["parameters", short(values.parameters?.[unit.name])],
      ["FLOPs an image", short(values.flops?.[unit.name])],
      ["gradient norm", short(values.gradient?.[unit.name])],
      ["branch share", unit.skip === "none" ? "no skip" : short(values.share?.[unit.name])],
      ["lesion damage", values.lesion?.[unit.name] === undefined ? "not measured yet" : values.lesion[unit.name] === null ? "cannot be cut" : `${(100 * values.lesion[unit.name]).toFixed(1)} points`],
    ];
    const key = `branch:${unit.name}`;
    const alpha = store.find(key) === null ? 1 : Number(store.find(key).split("=")[1]);
    slide.value = alpha;
    told.textContent = alpha.toFixed(2);
    const body = [
      h("h3", {}, unit.name, unit.opens ? h("span", { class: "tag" }, "opens a stage") : null),
      h("dl", { class: "facts-list" }, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    ];
    const buttons = h("div", { class: "controls" },
      toggle("✂ Cut the skip", `shortcut:${unit.name}`, `shortcut:${unit.name}=0`, unit.skip !== "none", "there is no skip"),
      toggle("✕ Cut the block", `block:${unit.name}`, `block:${unit.name}`, !(unit.skip === "none" && unit.opens), "it changes the shape and has no skip"));
    if (drawn === unit.name && root.contains(slide)) {
      // keep the slider itself in place: it may be held
      const focus = document.activeElement?.textContent;
      root.querySelector("dl").replaceWith(body[1]);
      root.querySelector(".controls").replaceWith(buttons);
      if (focus) [...buttons.children].find((button) => button.textContent === focus)?.focus();
    } else {
      root.replaceChildren(...body, buttons, h("label", { class: "slider", for: "branch-scale" }, "Branch scale"), h("div", { class: "slide-row" }, slide, told));
    }
    drawn = unit.name;
  }

  return { root, draw };
}
