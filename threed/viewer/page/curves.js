// Plots of losses over steps: each value faint, the mean of those around it strong.

import { element } from "./elements.js";

const WIDE = 280, TALL = 72, AROUND = 16; // pixels, or for means a share of all steps

export function curves(told) {
  return told.flatMap(({ stage, steps, values }) =>
    Object.entries(values).map(([name, numbers]) => plot(`${stage} · ${name.replaceAll("_", " ")}`, steps, numbers)));
}

function plot(name, steps, numbers) {
  const points = steps.map((step, i) => [step, numbers[i]]).filter(([, number]) => number !== null);
  const last = points.length ? points.at(-1)[1].toPrecision(3) : "–";
  const figure = element("figure", { class: "plot" },
    element("figcaption", {}, name, element("span", { class: "number" }, String(Number(last) || last))));
  if (points.length < 2) return figure;
  const means = running(points), [low, high] = range(points.map(([, number]) => number));
  const [first, end] = [points[0][0], points.at(-1)[0]];
  const x = step => (WIDE * (step - first)) / (end - first), y = number => TALL - (TALL * (number - low)) / (high - low);
  const path = (line, kind) => element("path", {
    class: kind, d: "M" + line.map(([step, number]) => `${x(step).toFixed(1)} ${y(number).toFixed(1)}`).join("L"),
  });
  const zero = low < 0 && high > 0 ? element("line", { class: "zero", x1: 0, x2: WIDE, y1: y(0), y2: y(0) }) : null;
  figure.append(
    element("svg", {
      viewBox: `0 0 ${WIDE} ${TALL}`, role: "img", preserveAspectRatio: "none",
      "aria-label": `${name}: from ${points[0][1].toPrecision(3)} at step ${first} to ${last} at step ${end}`,
    }, zero, path(points, "each"), path(means, "mean")),
    element("p", { class: "axis quiet" }, element("span", {}, `step ${first}`), element("span", {}, String(end))));
  return figure;
}

function running(points) {
  const reach = Math.max(1, Math.floor(points.length / AROUND));
  return points.map(([step], i) => {
    const near = points.slice(Math.max(0, i - reach), i + reach + 1);
    return [step, near.reduce((sum, [, number]) => sum + number, 0) / near.length];
  });
}

// From the 2nd to the 98th percentile with some air, so that a single spike does not flatten the rest.
function range(numbers) {
  const sorted = numbers.toSorted((a, b) => a - b), at = share => sorted[Math.round(share * (sorted.length - 1))];
  const low = at(0.02), high = at(0.98), air = 0.08 * (high - low) || Math.abs(low) || 1;
  return [low - air, high + air];
}
