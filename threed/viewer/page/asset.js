// One run or mesh: the model with all that can be done to it, what its report says, and its files.

import { curves } from "./curves.js";
import { ago, count, duration, element, icon, size, title } from "./elements.js";
import { preview, stages, words } from "./working.js";

const KINDS = {
  glb: "for engines and the web", gltf: "for engines, as text", obj: "for older tools", mtl: "the OBJ’s material",
  usdz: "for Apple devices", stl: "for printing", ply: "for scanning tools", webp: "the turntable", zip: "everything",
  "asset.png": "the OBJ’s texture", "preview.png": "from eight sides", "input.png": "the picture, cut out", "mask.png": "where it is", "views.png": "what the prior drew",
  "report.json": "all figures", "recipe.json": "all settings",
};

const kind = name => {
  const level = name.match(/lod(\d+)\.\w+$/i);
  return level ? `level of detail ${level[1]}` : KINDS[name] ?? KINDS[name.split(".").at(-1)] ?? "";
};

export class AssetPage {
  constructor(main, told) {
    this.stage = element("div", { class: "stage" });
    this.panel = element("aside", { class: "panel", "aria-label": "About it" });
    main.replaceChildren(element("div", { class: "asset" }, this.stage, this.panel));
    this.level = told.level ?? 0;
  }

  close() {
    this.viewer?.close();
    this.closed = true;
  }

  update(told) {
    const text = JSON.stringify(told, (name, value) => (name === "silent_for" ? undefined : value));
    if (text === this.text && told.state !== "working") return;
    this.text = text;
    this.told = told;
    const address = told.levels?.find(each => each.level === this.level)?.mesh ?? told.mesh;
    if (address && told.state !== "working") {
      this.showModel(address);
    } else {
      this.viewer?.close(); // the run was begun anew
      this.viewer = this.shown = null;
      this.stage.replaceChildren(preview(told));
    }
    this.describe();
  }

  async showModel(address) {
    if (address === this.shown) return;
    const colliders = this.level === 0 ? this.told.colliders : [];
    this.shown = address;
    if (!this.viewer) {
      this.stage.replaceChildren(element("p", { class: "loading" }, "Loading the model …"));
      try {
        const { Viewer } = await import("./viewer.js");
        if (this.closed) return;
        this.viewer = new Viewer(this.stage);
      } catch (error) {
        return this.instead(error);
      }
    }
    try {
      await this.viewer.load(address, colliders);
      if (this.closed) return this.viewer.close();
      this.describe();
    } catch (error) {
      this.viewer?.close();
      this.viewer = null;
      this.instead(error);
    }
  }

  // Pictures, where the model cannot be shown.
  async instead(error) {
    const told = await error.response?.json?.().catch(() => null);  // what the site says of a file that it cannot convert
    const why = told?.problem ?? (/WebGL/i.test(error.message) ? "this browser has no WebGL 2"
      : /meshopt|ktx/i.test(error.message) ? "it is compressed; open the plain GLB beside it" : error.message);
    this.stage.replaceChildren(element("div", { class: "working" },
      this.told.turntable ? element("img", { class: "live", src: this.told.turntable, alt: title(this.told) }) : null,
      element("p", { class: "caption", role: "alert" }, `The model cannot be shown: ${why}.`)));
  }

  describe() {
    const { told } = this, unfinished = told.state === "working" || told.state === "stopped";
    const open = (id, otherwise) => this.panel.querySelector(`#${id}`)?.open ?? otherwise;
    const reachable = () => [...this.panel.querySelectorAll("a, summary, input, pre")];
    const focused = reachable().indexOf(document.activeElement);
    this.panel.replaceChildren(
      this.heading(),
      ...told.problems.map(problem => element("p", { class: "problem", role: "alert" }, problem)),
      unfinished ? stages(told) : "",
      unfinished ? this.losses(open("losses", true)) : "",
      this.levels(),
      unfinished ? "" : this.facts(),
      this.downloads(),
      told.input ? element("section", {}, element("h2", {}, "Made from"), element("img", { class: "input", src: told.input, alt: "The picture it was made from" })) : "",
      unfinished ? "" : this.losses(open("losses", false)),
      this.help(open("help", false)));
    reachable()[focused]?.focus({ preventScroll: true });
  }

  heading() {
    const { told } = this;
    const seed = told.seed ? `seed ${told.seed}` : null;
    return element("div", { class: "heading" },
      element("h1", {}, title(told)),
      element("p", { class: "quiet", title: told.about || undefined },
        [told.recipe, seed, told.seconds ? duration(told.seconds) : null, ago(told.made)].filter(Boolean).join(" · ")),
      told.negative ? element("p", { class: "quiet" }, `not: ${told.negative}`) : null);
  }

  levels() {
    const { levels } = this.told;
    if (!levels || levels.length < 2 || !this.viewer) return "";
    return element("fieldset", { class: "levels" },
      element("legend", {}, "Level of detail"),
      element("div", { class: "choices" }, levels.map(({ level, mesh }) => element("label", {},
        element("input", {
          type: "radio", name: "level", value: String(level), checked: level === this.level,
          onchange: () => {
            this.level = level;
            this.showModel(mesh);
          },
        }), element("span", {}, level === 0 ? "Full" : `LOD ${level}`)))));
  }

  facts() {
    const found = [...this.measured()], told = this.told.facts ?? [];
    const row = ({ what, value, explained }) =>
      element("div", { title: explained }, element("dt", {}, what), element("dd", {}, value), explained ? element("dd", { class: "unseen" }, explained) : null);
    const known = new Set(told.map(each => each.what));
    const own = found.filter(each => !known.has(each.what)), all = [...own.slice(0, 1), ...told, ...own.slice(1)];
    return all.length ? element("section", {}, element("h2", {}, "Figures"), element("dl", { class: "facts" }, all.map(row))) : "";
  }

  // What the file itself shows.
  * measured() {
    const figures = this.viewer?.model?.figures;
    if (!figures) return;
    yield { what: "Triangles", value: count(figures.triangles), explained: `Between ${count(figures.vertices)} vertices, those at seams counted once for each side.` };
    yield { what: "Size", value: figures.size.map(each => each.toFixed(2)).join(" × ") + " m", explained: "Wide, high, deep, in metres." };
    if (figures.materials !== 1) yield { what: "Materials", value: count(figures.materials), explained: "Each costs an engine a draw call." };
    if (figures.pictures.length) {
      const names = figures.pictures.map(([name]) => name).join(", ");
      yield { what: "Texture", value: figures.pictures[0][1].join(" × "), explained: "Texels of each map." };
      yield { what: "Maps", value: names, explained: "Pictures of the surface that the file carries." };
    }
    if (figures.finish && !figures.pictures.some(([name]) => name === "roughness")) {
      const { roughness, metalness } = figures.finish;
      yield { what: "Finish", value: `${Math.round(100 * roughness)} % rough, ${Math.round(100 * metalness)} % metal`, explained: "The same everywhere." };
    }
  }

  downloads() {
    const files = this.told.downloads;
    if (!files.length) return "";
    return element("section", {}, element("h2", {}, "Files"),
      element("ul", { class: "files" }, files.map(({ name, address, bytes }) => element("li", {},
        element("a", { href: address, download: name }, icon("download"), element("span", { class: "name" }, name),
          element("span", { class: "kind quiet" }, kind(name)),
          element("span", { class: "number quiet" }, size(bytes)))))));
  }

  losses(open) {
    const told = this.told.progress;
    if (!told?.curves.length && !this.told.notes?.length) return "";
    const taken = (told?.stages ?? []).filter(stage => stage.seconds >= 0.05);
    return element("details", { id: "losses", open },
      element("summary", {}, this.told.state === "working" ? "How it goes" : "How it went"),
      taken.length && this.told.state === "finished"
        ? element("dl", { class: "facts" }, taken.map(stage => element("div", {}, element("dt", {}, words(stage.name)), element("dd", {}, duration(stage.seconds)))))
        : "",
      curves(told?.curves ?? []),
      this.told.notes?.length ? element("pre", { class: "log", tabIndex: 0, "aria-label": "The end of log.txt" }, this.told.notes.join("\n")) : "");
  }

  help(open) {
    if (!this.viewer) return "";
    const keys = [
      ["Drag, arrow keys", "turn around it"], ["Scroll, pinch, + −", "nearer, farther"], ["Right drag, two fingers", "move it"],
      ["0", "back to the beginning"], ["L W U C T", "light, wireframe, UVs, collider, turning"], ["P", "save a picture"],
    ];
    return element("details", { id: "help", open }, element("summary", {}, "Mouse, touch and keys"),
      element("dl", { class: "facts keys" }, keys.map(([key, what]) => element("div", {}, element("dt", {}, key), element("dd", {}, what)))));
  }
}
