// All runs and meshes of a folder, and a search among them.

import { ago, count, duration, element, icon, title } from "./elements.js";

const STATES = { working: "at work", stopped: "stopped" };
const ORDERS = {
  newest: ["Newest first", (a, b) => b.made - a.made],
  name: ["By name", (a, b) => title(a).localeCompare(title(b))],
  quickest: ["Quickest first", (a, b) => (a.seconds ?? Infinity) - (b.seconds ?? Infinity)],
};

export class GalleryPage {
  constructor(main) {
    this.search = element("input", {
      type: "search", id: "search", placeholder: "Search: chair, instant, seed 3", autocomplete: "off", spellcheck: false,
      oninput: () => this.arrange(),
    });
    this.order = element("select", { id: "order", onchange: () => this.arrange() },
      Object.entries(ORDERS).map(([value, [words]]) => element("option", { value }, words)));
    this.found = element("p", { class: "quiet", role: "status" });
    this.cards = element("ul", { class: "cards" });
    this.byPlace = new Map();
    this.entries = [];
    main.replaceChildren(element("div", { class: "gallery" },
      element("div", { class: "tools" },
        element("label", { class: "search", title: "Key: /" }, icon("search"),
          element("span", { class: "unseen" }, "Search by words, recipe or seed"), this.search),
        element("label", { class: "order" }, element("span", { class: "unseen" }, "Order"), this.order), this.found),
      this.cards));
    this.focus = event => {
      if (event.key === "/" && document.activeElement !== this.search) {
        event.preventDefault();
        this.search.focus();
      }
    };
    addEventListener("keydown", this.focus);
  }

  close() {
    removeEventListener("keydown", this.focus);
  }

  update(told) {
    const told_ = JSON.stringify(told);
    if (told_ === this.told) return;
    this.told = told_;
    this.entries = told.entries;
    this.leftOut = told.left_out;
    this.arrange();
  }

  // Cards stay the same elements, so that nothing flickers and the focus stays where it is.
  arrange() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = this.entries.filter(entry => words.every(word => text(entry).includes(word)));
    shown.sort(ORDERS[this.order.value][1]);
    this.cards.replaceChildren(...shown.map(entry => this.card(entry)));
    const all = count(this.entries.length), more = this.leftOut ? ` (${count(this.leftOut)} older ones are left out)` : "";
    const number = words.length ? `${count(shown.length)} of ${all}` : `${all} in all`;
    this.found.textContent = shown.length ? number + more : `Nothing of ${all} is called “${this.search.value}”.`;
  }

  card(entry) {
    const known = this.byPlace.get(entry.at), told = JSON.stringify(entry);
    if (known?.told === told) return known.card;
    const card = element("li", { class: "card" },
      element("a", { href: "#/" + encodeURIComponent(entry.at) },
        thumbnail(entry),
        element("h2", {}, title(entry)),
        element("p", { class: "quiet" }, about(entry))));
    this.byPlace.set(entry.at, { told, card });
    return card;
  }
}

// What a search looks at; `seed 3` finds seeds.
const text = entry =>
  [entry.prompt, entry.name, entry.at, entry.recipe, STATES[entry.state], entry.seed ? `seed ${entry.seed}` : ""]
    .join(" ").toLowerCase();

function about(entry) {
  const seconds = entry.seconds === null || entry.seconds === undefined ? null : duration(entry.seconds);
  const seed = entry.seed ? `seed ${entry.seed}` : null;
  return [entry.recipe, seed, seconds, entry.state === "mesh" ? entry.folder : null, ago(entry.made)]
    .filter(Boolean).join(" · ");
}

function thumbnail(entry) {
  const frame = element("div", { class: "thumbnail" });
  if (entry.preview) {
    frame.append(element("img", { src: entry.preview, alt: "", class: "sheet", loading: "lazy" }));
  } else if (entry.live) {
    frame.append(element("img", { src: entry.live, alt: "", class: "live", loading: "lazy" }));
  } else {
    frame.append(element("span", { class: "blank" }, icon("wireframe")));
  }
  if (entry.turntable) {
    const turn = () => frame.classList.contains("turns") || (frame.classList.add("turns"),
      frame.append(element("img", { src: entry.turntable, alt: "", class: "turntable" })));
    const stop = () => (frame.classList.remove("turns"), frame.querySelector(".turntable")?.remove());
    queueMicrotask(() => {
      const link = frame.parentElement;
      link.addEventListener("pointerenter", turn);
      link.addEventListener("focus", turn);
      link.addEventListener("pointerleave", stop);
      link.addEventListener("blur", stop);
    });
  }
  if (STATES[entry.state]) {
    const share = entry.share === undefined ? "" : ` · ${Math.floor(100 * entry.share)} %`;
    frame.append(element("span", { class: `badge ${entry.state}` }, STATES[entry.state] + share));
  }
  return frame;
}
