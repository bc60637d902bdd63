// Elements, numbers and files: the few things every panel needs.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("aria-")) node.setAttribute(name, String(value));
    else if (value === false) continue;
    else if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

// An HTML element: h("button", {class: "quiet", onclick: f}, "text").
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

// An SVG element.
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)}%`);

export function points(value) {
  const text = Math.abs(100 * value).toFixed(1);
  return text === "0.0" ? "±0.0" : `${value > 0 ? "+" : "−"}${text}`;
}

export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e9) return `${(value / 1e9).toPrecision(3)} G`;
  if (size >= 1e6) return `${(value / 1e6).toPrecision(3)} M`;
  if (size >= 1e4) return `${(value / 1e3).toPrecision(3)} k`;
  if (size < 1e-3) return value.toExponential(1).replace("-", "−");
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

export function duration(seconds) {
  if (seconds < 1) return "under a second";
  if (seconds < 90) return `about ${Math.round(seconds)} s`;
  return `about ${Math.round(seconds / 60)} min`;
}

// Hands a text to the person as a file.
export function save(name, text, type) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function toCsv(header, rows) {
  const cell = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`; // no formula in a sheet
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [header, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

export function svgText(element) {
  const copy = element.cloneNode(true);
  copy.setAttribute("xmlns", SVG);
  for (const node of [copy, ...copy.querySelectorAll("*")]) {
    for (const name of ["tabindex", "role", "aria-label", "aria-pressed", "aria-current", "class"]) node.removeAttribute(name);
  }
  return new XMLSerializer().serializeToString(copy);
}

// Two small buttons that save a chart; `svg` and `csv` give the texts when pressed.
export function saving(name, what, svg, csv) {
  const button = (kind, text, type) =>
    h("button", { class: "small", type: "button", "aria-label": `Save ${what} as ${kind}`, onclick: () => save(`${name}.${kind.toLowerCase()}`, text(), type) }, kind);
  return h("span", { class: "saving" }, svg ? button("SVG", svg, "image/svg+xml") : null, csv ? button("CSV", csv, "text/csv") : null);
}

// The Python lines of a panel, to unfold and copy.
export function python(what) {
  const code = h("code");
  const copy = h("button", { class: "small", type: "button", "aria-label": `Copy the Python lines of ${what}` }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      copy.textContent = "Selected: press Ctrl-C";
    }
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  const box = h("details", { class: "python" }, h("summary", {}, "Python that does the same"), h("div", {}, h("pre", { tabindex: "0", "aria-label": `Python lines of ${what}` }, code), copy));
  box.show = (text) => (code.textContent = text);
  return box;
}

// A progress bar that appears when work takes longer than 100 ms, with words beside it.
export function progress(label) {
  const bar = h("progress", { max: "1", "aria-label": label });
  const words = h("span", {}, label);
  const box = h("div", { class: "progress", hidden: true }, bar, words);
  let timer = 0;
  box.begin = () => {
    clearTimeout(timer);
    bar.removeAttribute("value");
    timer = setTimeout(() => (box.hidden = false), 100);
  };
  box.tell = (share, text) => {
    bar.value = share;
    words.textContent = text ?? `${label}, ${Math.round(100 * share)}%`;
  };
  box.end = () => {
    clearTimeout(timer);
    box.hidden = true;
  };
  return box;
}

export function message() {
  const box = h("p", { class: "message", role: "alert", hidden: true });
  box.show = (text) => {
    box.textContent = text;
    box.hidden = !text;
  };
  return box;
}
