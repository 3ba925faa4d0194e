// The page: asks what there is to show, shows it, and asks again while it is being looked at.

import { AssetPage } from "./asset.js";
import { title } from "./elements.js";
import { GalleryPage } from "./gallery.js";

const AGAIN = { working: 1500, other: 4000 }; // milliseconds between questions
const main = document.getElementById("main"), notice = document.getElementById("notice");
const where = document.getElementById("where"), back = document.getElementById("back");
let page = null, shownAt = null, timer = 0;

function asked() {
  return location.hash.startsWith("#/") && location.hash.length > 2 ? decodeURIComponent(location.hash.slice(2)) : null;
}

async function refresh() {
  clearTimeout(timer);
  const at = asked();
  let wait = AGAIN.other;
  try {
    const answer = await fetch("/told.json" + (at === null ? "" : `?at=${encodeURIComponent(at)}`), { cache: "no-store" });
    const told = await answer.json();
    if (asked() !== at) return; // another one was opened meanwhile; its own question is under way
    if (!answer.ok) throw new Error(told.problem);
    tell("");
    show(at, told);
    if (told.state === "working") wait = AGAIN.working;
  } catch (error) {
    const gone = error instanceof TypeError;
    tell(gone ? "The viewer has ended; start it again with threed view." : `This cannot be shown: ${error.message}.`);
    if (gone) console.info(error);
  }
  if (!document.hidden) timer = setTimeout(refresh, wait);
}

function show(at, told) {
  const Page = told.kind === "gallery" ? GalleryPage : AssetPage;
  if (!(page instanceof Page) || at !== shownAt) {
    page?.close();
    if (page) main.focus({ preventScroll: true });
    page = new Page(main, told);
    shownAt = at;
    scrollTo(0, 0);
  }
  page.update(told);
  document.title = told.kind === "gallery" ? "threed" : `${title(told)} · threed`;
  back.hidden = told.kind === "gallery" || told.root !== "" || at === null;
  where.textContent = told.here + (at && !told.root ? `/${at}` : "");
}

function tell(words) {
  if (notice.textContent !== words) notice.textContent = words;
  notice.hidden = !words;
}

addEventListener("hashchange", refresh);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
refresh();
