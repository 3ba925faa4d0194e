// The stage: the model, and around it the controls that change how it is drawn.

import { element, icon } from "./elements.js";
import { draw as drawLayout } from "./layout.js";
import { MAPS } from "./materials.js";
import { Model, VIEWS } from "./model.js";

const BACKGROUNDS = { backdrop: "Studio", white: "White", black: "Black", chosen: "Colour" };
const TOGGLES = {
  light: ["Light", "L"], wireframe: ["Wireframe", "W"], layout: ["UVs", "U"], collider: ["Collider", "C"], turn: ["Turn", "T"],
};
const dark = matchMedia("(prefers-color-scheme: dark)");

export class Viewer {
  constructor(stage) {
    this.stage = stage;
    this.on = { light: true, wireframe: false, layout: false, collider: false, turn: false };
    this.canvas = element("canvas", {
      class: "model", tabIndex: 0, role: "img",
      "aria-label": "The model. Arrow keys turn it, plus and minus come nearer and go farther, 0 goes back.",
    });
    this.view = element("div", { class: "view" }, this.canvas);
    this.paper = element("canvas", { role: "img", "aria-label": "The texture with the outlines of its charts" });
    this.caption = element("p", { class: "quiet" });
    this.sheet = element("div", { class: "layout", hidden: true }, this.paper, this.caption);
    this.maps = element("fieldset", { class: "maps" });
    this.buttons = Object.fromEntries(Object.entries(TOGGLES).map(([name, [words, key]]) => [name, element("button", {
      type: "button", "aria-pressed": String(this.on[name]), "aria-keyshortcuts": key, "data-what": name,
      title: `${words} (${key})`, onclick: () => this.toggle(name),
    }, icon(name), element("span", {}, words))]));
    const views = Object.entries(VIEWS).map(([name, [azimuth, elevation]]) => element("button", {
      type: "button", "data-view": name, onclick: () => this.model.look(azimuth, elevation),
    }, name[0].toUpperCase() + name.slice(1)));
    stage.replaceChildren(this.view, this.sheet, this.maps,
      element("div", { class: "bar", role: "toolbar", "aria-label": "How it is shown" },
        element("div", { class: "group" }, Object.values(this.buttons)),
        element("div", { class: "group plain", role: "group", "aria-label": "Seen from" }, views),
        element("div", { class: "group" }, this.background(), this.action("picture", "Save a picture (P)", () => this.save()),
          this.action("full", "Whole screen", () => this.full()))));
    this.model = new Model(this.canvas);
    this.model.set({ dark: dark.matches });
    this.themed = () => this.model.set({ dark: dark.matches });
    dark.addEventListener("change", this.themed);
    this.keys = event => this.key(event);
    addEventListener("keydown", this.keys);
  }

  close() {
    removeEventListener("keydown", this.keys);
    dark.removeEventListener("change", this.themed);
    this.model.close();
    this.stage.classList.remove("split");
    delete this.stage.dataset.ready;
  }

  async load(address, colliders) {
    await this.model.load(address, colliders);
    this.buttons.collider.hidden = !this.model.hasCollider();
    const maps = this.model.maps();
    if (!maps.includes(this.model.state.map)) this.model.set({ map: "colour" });
    this.maps.replaceChildren(element("legend", { class: "unseen" }, "What its surface shows"),
      element("div", { class: "choices" }, maps.map(name => element("label", {},
        element("input", {
          type: "radio", name: "map", value: name, checked: name === this.model.state.map, onchange: () => this.show(name),
        }), element("span", {}, MAPS[name])))));
    this.drawLayout();
    this.stage.dataset.ready = address;
  }

  show(map) {
    this.model.set({ map });
    this.buttons.light.disabled = map !== "colour"; // clay is always lit, maps of data never are
    this.drawLayout();
  }

  toggle(name) {
    const button = this.buttons[name];
    if (button.hidden || button.disabled) return;
    this.on[name] = !this.on[name];
    button.setAttribute("aria-pressed", String(this.on[name]));
    if (name === "layout") {
      this.sheet.hidden = !this.on.layout;
      this.stage.classList.toggle("split", this.on.layout);
      this.drawLayout();
    } else if (name === "turn") {
      this.model.turn(this.on.turn);
    } else {
      this.model.set({ [name]: this.on[name] });
    }
  }

  drawLayout() {
    if (!this.on.layout || !this.model.parts.length) return;
    const surfaces = this.model.surfaces(), shown = surfaces.find(surface => surface.texture) ?? surfaces[0];
    const { charts } = drawLayout(this.paper, shown), image = shown.texture?.image;
    const map = MAPS[this.model.state.map] && shown.texture ? MAPS[shown.texture === this.texture("colour") ? "colour" : this.model.state.map] : null;
    this.caption.textContent = charts === null ? "This mesh has no UVs." : [
      map, image ? `${image.width} × ${image.height}` : "no texture", `${charts} chart${charts === 1 ? "" : "s"}`,
    ].filter(Boolean).join(" · ");
  }

  texture(name) {
    const material = [this.model.parts.find(part => !part.collider)?.own].flat()[0];
    return name === "colour" ? material?.map : null;
  }

  background() {
    const colour = element("input", { type: "color", value: "#7a8cff", "aria-label": "Background colour", oninput: () => choose("chosen") });
    const select = element("select", { "aria-label": "Background", title: "Background", onchange: () => choose(select.value) },
      Object.entries(BACKGROUNDS).map(([value, words]) => element("option", { value }, words)));
    const choose = value => {
      select.value = value;
      colour.hidden = value !== "chosen";
      this.view.style.background = value === "backdrop" ? "" : value === "chosen" ? colour.value : value;
    };
    colour.hidden = true;
    return element("span", { class: "background" }, select, colour);
  }

  action(name, words, onclick) {
    return element("button", { type: "button", title: words, "aria-label": words, "data-what": name, onclick }, icon(name));
  }

  async save() {
    const address = URL.createObjectURL(await this.model.picture());
    element("a", { href: address, download: `${document.title.split(" · ")[0].replace(/[^\p{L}\p{N}]+/gu, "-")}.png` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  full() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.stage.requestFullscreen?.();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "radio") return;
    const name = Object.keys(TOGGLES).find(each => TOGGLES[each][1] === event.key.toUpperCase());
    if (name) this.toggle(name);
    else if (event.key.toUpperCase() === "P") this.save();
  }
}
