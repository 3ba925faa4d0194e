// Elements of the page, and words for numbers.

// An element; properties are set as such, `class`, `for`, `data-` and `aria-` as attributes, `on...` as listeners.
export function element(tag, properties = {}, ...children) {
  const made = tag === "svg" || SHAPES.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (made instanceof SVGElement || /^(class|for|role|list|data-|aria-)/.test(name)) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";
const SHAPES = new Set(["path", "line", "circle", "g", "text"]);

const PATHS = {
  light: "M12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6 7 7M17 17l1.4 1.4M5.6 18.4 7 17M17 7l1.4-1.4M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8z",
  wireframe: "M12 3 20.5 8v8L12 21 3.5 16V8zM3.5 8l8.5 5 8.5-5M12 13v8M3.5 16l8.5-3 8.5 3M12 3v10",
  layout: "M4 4h16v16H4zM4 10h7V4M11 10v10M11 14h9M15 14v6",
  collider: "M12 3 19 7v10l-7 4-7-4V7zM9 12h6M12 9v6",
  turn: "M20 12a8 4 0 1 1-5-3.7M20 5v4h-4",
  picture: "M4 7h3l2-2h6l2 2h3v12H4zM12 10a3.2 3.2 0 1 0 0 6.4A3.2 3.2 0 0 0 12 10z",
  full: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
  download: "M12 4v11M7.5 11 12 15.5 16.5 11M5 20h14",
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13zM15.5 15.5 20 20",
};

export function icon(name) {
  return element("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, element("path", { d: PATHS[name] }));
}

export const count = number => number.toLocaleString("en");

export function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return seconds < 9.95 ? `${seconds.toFixed(1)} s` : `${whole} s`;
  const minutes = Math.floor(whole / 60);
  return minutes < 60 ? `${minutes} min ${whole % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${Math.round(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

export function ago(then) {
  const seconds = Math.max(0, Date.now() / 1000 - then);
  if (seconds < 60) return "just now";
  const unit = [[86400, "d"], [3600, "h"], [60, "min"]].find(([length]) => seconds >= length);
  return `${Math.floor(seconds / unit[0])} ${unit[1]} ago`;
}

// What a run or mesh is called.
export const title = told => told.prompt || told.name;
