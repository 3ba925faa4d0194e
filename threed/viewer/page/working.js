// A run that is not finished: its preview, its stages and the time that is left.

import { duration, element } from "./elements.js";

const WORDS = {
  load: "Loading the prior", start: "A first shape", mesh: "Making the mesh", paint: "Painting", export: "Writing files",
  picture: "Cutting out the picture", camera: "Finding the camera", texture: "Putting the picture on",
};

export const words = name =>
  WORDS[name] ?? (name.startsWith("begin ") ? `Preparing ${name.slice(6)}` : name[0].toUpperCase() + name.slice(1));

export function preview(told) {
  const now = told.progress.stages.find(stage => stage.name === told.progress.now);
  const picture = told.live;
  return element("div", { class: "working" },
    picture
      ? element("img", { class: "live", src: picture, alt: "What the prior is shown: colours above, directions below" })
      : element("div", { class: "live waiting" }, element("span", {}, told.state === "working" ? "The first picture comes soon" : "There is no picture")),
    element("p", { class: "caption quiet" },
      told.state === "stopped" ? `Stopped; the same command with --resume goes on.` : now ? words(now.name) : "Done"));
}

export function stages(told) {
  const { stages: all, now, seconds_left: left } = told.progress;
  const done = all.reduce((sum, stage) => sum + stage.step, 0), total = all.reduce((sum, stage) => sum + stage.steps, 0);
  const working = told.state === "working";
  const late = working && told.silent_for > 20 ? ` Nothing new for ${duration(told.silent_for)}.` : "";
  const eta = left === null ? "The time that is left shows after a few steps."
    : left > 0 ? `About ${duration(left)} left, and the last touches.` : "The last touches.";
  return element("section", { class: "stages" },
    element("h2", {}, working ? "At work" : "Stopped"),
    working ? element("p", { class: "eta" }, eta + late) : null,
    element("progress", { max: Math.max(total, 1), value: done, "aria-label": "Of all steps" }),
    element("ol", {}, all.map(stage => element("li", {
      class: stage.step >= stage.steps ? "done" : stage.name === now && working ? "now" : "next",
      "aria-current": stage.name === now ? "step" : undefined,
    }, element("span", {}, words(stage.name)),
      element("span", { class: "number" },
        stage.steps > 1 && stage.step < stage.steps ? `${stage.step} of ${stage.steps}` : stage.step ? duration(stage.seconds) : "")))));
}
