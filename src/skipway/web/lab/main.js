// The lab's page: tabs over panels, the address, and what is said when the server goes away. One file a panel.

import { get, knownBoot, onReturn } from "./api.js";
import { dark } from "./colours.js";
import { h } from "./dom.js";
import { cardsPanel } from "./cards.js";
import { imagePanel } from "./image.js";
import { landscapePanel } from "./landscape.js";
import { racePanel } from "./race.js";
import * as store from "./store.js";
import { stripPanel } from "./strip.js";

const TITLES = { strip: "Strip", race: "Race", landscape: "Landscape", image: "One image", cards: "Cards" };
const MAKE = { strip: stripPanel, race: racePanel, landscape: landscapePanel, image: imagePanel, cards: cardsPanel };

const tabs = document.getElementById("tabs");
const main = document.getElementById("main");
const notice = document.getElementById("notice");
const panels = {};
let network = null;

function say(text) {
  notice.replaceChildren(...(text ? [h("span", {}, text), h("button", { class: "small", type: "button", onclick: () => say("") }, "Close")] : []));
  notice.hidden = !text;
}

function facts() {
  const kind = network.trained ? "trained" : "fresh weights";
  const blocks = network.units.length;
  const skips = network.units.filter((unit) => unit.skip !== "none").length;
  document.getElementById("facts").replaceChildren(
    h("strong", {}, network.title), ` · ${kind} · ${blocks} blocks, ${skips} skips · ${network.images} images of ${network.image_size} pixels`,
  );
  document.title = `${network.title} – skipway lab`;
}

function makeTabs() {
  for (const name of store.PANELS) {
    tabs.append(h("button", { role: "tab", type: "button", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => store.look({ panel: name }) }, TITLES[name]));
    main.append(h("section", { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}`, hidden: true }));
  }
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const edge = { Home: 0, End: store.PANELS.length - 1 }[event.key];
    if (step === undefined && edge === undefined) return;
    event.preventDefault();
    const place = edge ?? (store.PANELS.indexOf(store.view().panel) + step + store.PANELS.length) % store.PANELS.length;
    store.look({ panel: store.PANELS[place] });
    document.getElementById(`tab-${store.PANELS[place]}`).focus();
  });
}

function show() {
  const { panel } = store.view();
  for (const name of store.PANELS) {
    const chosen = name === panel;
    const tab = document.getElementById(`tab-${name}`);
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    document.getElementById(`panel-${name}`).hidden = !chosen;
  }
  if (!panels[panel]) {
    panels[panel] = MAKE[panel](network, document.getElementById(`panel-${panel}`));
  }
  panels[panel].shown?.();
}

async function begin() {
  network = await get("api/network");
  knownBoot(network.boot);
  facts();
  makeTabs();
  const odd = store.read(network);
  store.onChange(() => show());
  addEventListener("hashchange", () => say(store.read(network)));
  dark.addEventListener("change", () => Object.values(panels).forEach((panel) => panel.redraw?.()));
  onReturn(async (anew) => {
    if (anew) {
      const before = network.title;
      Object.assign(network, await get("api/network"));
      if (network.title !== before) return location.reload();
    }
    say(anew ? "The server was started anew; what ran on it begins again." : "The server answers again.");
    Object.values(panels).forEach((panel) => panel.returned?.(anew));
  });
  show();
  say(odd);
}

begin().catch((error) => say(`The lab could not begin: ${error.message}.`));
