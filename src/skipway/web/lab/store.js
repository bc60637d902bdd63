// What the page's address holds: panel, edits, the measure that colours, the block that is looked at. Edits are texts,
// "block:stage1.block2", as in skipway's edits.py; undo and redo are this page's own.

export const MEASURES = ["gradient", "share", "lesion", "flops"];
export const PANELS = ["strip", "race", "landscape", "image", "cards"];

const KINDS = /^(?:(branch|shortcut):([^=,]+)=(0|1|0?\.\d+|1\.0+)|block:([^=,]+)|swap:([^=,]+),([^=,]+))$/;

const listeners = new Set();
let network = null;
let history_ = [[]];
let at = 0;
let address = { panel: "strip", measure: "gradient", block: "" };

export const onChange = (call) => listeners.add(call);
export const edits = () => history_[at];
export const view = () => address;
export const canUndo = () => at > 0;
export const canRedo = () => at < history_.length - 1;

const same = (a, b) => a.length === b.length && a.every((value, i) => value === b[i]);
const keyOf = (edit) => edit.split("=")[0].replace(/,.*/, "");

function tell(what) {
  const text = new URLSearchParams({ panel: address.panel });
  if (edits().length) text.set("edits", edits().join(";"));
  if (address.measure !== "gradient") text.set("measure", address.measure);
  if (address.block) text.set("block", address.block);
  const hash = "#" + text.toString().replaceAll("%3A", ":").replaceAll("%3D", "=").replaceAll("%3B", ";").replaceAll("%2C", ",");
  if (hash !== location.hash) history.replaceState(null, "", hash);
  for (const call of listeners) call(what);
}

// Replaces the edits; `whileSliding` changes the last step of the history instead of adding one.
export function setEdits(next, { whileSliding = false } = {}) {
  if (same(next, edits())) return;
  if (whileSliding) history_[at] = next;
  else {
    history_ = [...history_.slice(0, at + 1), next];
    at += 1;
  }
  tell("edits");
}

// Puts an edit in, in place of one of the same kind and block; null takes that out.
export function change(key, edit, options) {
  const others = edits().filter((other) => keyOf(other) !== key);
  setEdits(edit === null ? others : [...others, edit], options);
}

export const find = (key) => edits().find((edit) => keyOf(edit) === key) ?? null;

export function undo() {
  if (canUndo()) { at -= 1; tell("edits"); }
}

export function redo() {
  if (canRedo()) { at += 1; tell("edits"); }
}

export function look(changes) {
  address = { ...address, ...changes };
  tell("view");
}

function known(edit) {
  const [, , unit, , block, first, second] = KINDS.exec(edit) ?? [];
  if (first) return [first, second].every((name) => network.units.some((u) => u.block === name));
  const found = network.units.find((u) => u.name === (unit ?? block));
  if (!found) return false;
  if (edit.startsWith("shortcut:")) return found.skip !== "none";
  return !(edit.startsWith("block:") && found.skip === "none" && found.opens);
}

// Reads the address. Gives one sentence on what in it is not known, which is ignored; "" where all is.
export function read(found) {
  network = found;
  const odd = [];
  const text = new URLSearchParams(location.hash.slice(1));
  const next = { panel: "strip", measure: "gradient", block: "" };
  let listed = [];
  for (const [key, value] of text) {
    if (key === "panel" && PANELS.includes(value)) next.panel = value;
    else if (key === "measure" && MEASURES.includes(value)) next.measure = value;
    else if (key === "block" && network.units.some((u) => u.name === value)) next.block = value;
    else if (key === "edits") {
      const all = value.split(";").filter(Boolean);
      listed = all.filter(known).slice(0, 2048);
      odd.push(...all.filter((edit) => !known(edit)));
    } else odd.push(value ? `${key}=${value}` : key);
  }
  address = next;
  if (!same(listed, edits())) {
    history_ = [...history_.slice(0, at + 1), listed];
    at += 1;
  }
  tell("read");
  if (!odd.length) return "";
  const shown = odd[0].length > 60 ? `${odd[0].slice(0, 60)}…` : odd[0];
  return `The address holds what this page does not know (${shown}${odd.length > 1 ? ` and ${odd.length - 1} more` : ""}); it is ignored.`;
}
