// The thumbnails: rows of one height, one tab stop, arrow keys. Nearly equal photos are one
// tile that opens.

import { thumbnailOf } from "./api.js";
import { fileName, month, number, whole } from "./text.js";

const gallery = document.getElementById("gallery");
let tiles = new Map(); // id → its <li>, in the order in which they stand
let heads = new Map(); // id → that of the photo under which it is stacked
let opened = new Set(); // ids of heads whose stacks are open
let scores = new Map(); // id → score, or null
let least = null; // the cut-off
let current = null; // the id that Tab reaches
let names = null; // true: there are no thumbnails now; null: that is not known yet
let broken = () => {};

/** Shows the hits; photos that were there already keep their place's node.
 *
 * `stacks`: lists of ids; the first of each stands for the others. `months`: tells them.
 */
export function show(hits, stacks, { months }) {
  heads = new Map(stacks.flatMap((stack) => stack.map((id) => [id, stack[0]])));
  opened = new Set([...opened].filter((id) => heads.get(id) === id));
  scores = new Map(hits.map(({ id, score }) => [id, score]));
  const items = new Map(hits.map((hit) => [hit.id, update(tiles.get(hit.id) ?? tile(hit), hit)]));
  tiles = new Map();
  const members = new Map(stacks.map((stack) => [stack[0], stack]));
  for (const { id } of hits) {
    if (tiles.has(id)) continue;
    for (const member of members.get(id) ?? [id]) tiles.set(member, items.get(member));
  }
  tellMonths(months ? hits : []);
  gallery.replaceChildren(...tiles.values());
  refresh();
  reach(tiles.has(current) ? current : hits[0]?.id);
}

function tile(hit) {
  const item = document.createElement("li");
  const button = element("button", "tile");
  button.type = "button";
  button.dataset.id = hit.id;
  button.tabIndex = -1;
  const image = new Image(hit.width, hit.height);
  image.loading = "lazy";
  image.decoding = "async";
  image.draggable = false;
  image.addEventListener("error", () => {
    item.classList.add("broken");
    broken(gallery.querySelectorAll(".broken").length);
  });
  image.addEventListener("load", () => item.classList.remove("broken"));
  if (names === false) image.src = thumbnailOf(hit.id);
  for (const part of ["score detail", "month", "name"]) button.append(element("span", part));
  button.prepend(image);
  item.append(button);
  // A panorama would fill a row alone: it is shown whole, in a place of this shape.
  const ratio = Math.min(3, Math.max(0.5, hit.width / hit.height));
  item.style.setProperty("--ratio", ratio.toFixed(4));
  return item;
}

function element(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

function update(item, { id, path, score, copies }) {
  item.querySelector("img").alt = path; // a filter may ask for another copy of it
  item.querySelector(".tile").ariaLabel = path; // also where there is no thumbnail
  const more = copies ? ` · ${copies + 1} copies` : "";
  item.querySelector(".name").textContent = fileName(path) + more;
  item.querySelector(".score").textContent = score === null ? "" : number(score);
  const isHead = heads.get(id) === id;
  const pile = item.querySelector(".pile");
  if (!isHead) pile?.remove();
  else if (!pile) item.append(pileButton(id));
  item.classList.toggle("member", heads.has(id) && !isHead);
  return item;
}

function pileButton(id) {
  const button = element("button", "pile");
  button.type = "button";
  button.title = "Nearly equal photos (S)";
  button.tabIndex = -1;
  button.addEventListener("click", () => toggle(id));
  return button;
}

/** The first photo of each month says so. */
function tellMonths(hits) {
  for (const item of tiles.values()) item.querySelector(".month").textContent = "";
  let last = null;
  for (const { id, taken } of hits) {
    const text = taken ? month(taken) : "Without a date";
    if (text !== last) tiles.get(heads.get(id) ?? id).querySelector(".month").textContent ||= text;
    last = text;
  }
}

/** Opens or closes the stack that a photo belongs to. */
export function toggle(id) {
  const head = heads.get(id);
  if (head === undefined) return;
  const hadFocus = focused() !== null; // what is hidden loses it
  if (!opened.delete(head)) opened.add(head);
  refresh();
  if (hadFocus) focus(id);
}

const passes = (id) => least === null || scores.get(id) >= least;

function refresh() {
  const more = new Map(); // head → the others that pass
  for (const [id, head] of heads) {
    if (id !== head && passes(id)) more.set(head, (more.get(head) ?? 0) + 1);
  }
  for (const [id, item] of tiles) {
    const head = heads.get(id) ?? id;
    item.hidden = !passes(id) || (id !== head && !opened.has(head));
    const pile = item.querySelector(".pile");
    if (!pile) continue;
    const count = more.get(id) ?? 0;
    pile.hidden = !count;
    pile.textContent = opened.has(id) ? "Close" : `+${whole(count)} alike`;
    pile.ariaExpanded = String(opened.has(id));
    item.classList.toggle("stack", count > 0 && !opened.has(id));
    item.classList.toggle("open", count > 0 && opened.has(id));
  }
  if (tiles.get(current)?.hidden) reach(shown()[0]);
}

/** Hides what scores less; returns how many photos are left, stacked ones among them. */
export function cutOff(cut) {
  least = cut;
  refresh();
  return [...tiles.keys()].filter(passes).length;
}

/** Ids of the photos that can be seen, in their order. */
export const shown = () => [...tiles].filter(([, item]) => !item.hidden).map(([id]) => id);

/** The id of the photo that has the focus, or null. */
export function focused() {
  const button = document.activeElement?.closest?.("#gallery .tile");
  return button ? Number(button.dataset.id) : null;
}

/** Tab reaches this photo, and its stack's button after it. */
function reach(id) {
  for (const [other, item] of tiles) {
    for (const button of item.querySelectorAll("button")) button.tabIndex = other === id ? 0 : -1;
  }
  current = id ?? null;
}

export function focus(id) {
  const seen = tiles.get(id)?.hidden ? heads.get(id) : id;
  const item = tiles.get(seen);
  if (!item) return;
  reach(seen);
  item.querySelector(".tile").focus();
}

/** Shows names alone while the folder of the photos is away, else photos: not before this
 * has been called, so that a folder that is away is not asked for each of them.
 */
export function showNames(on) {
  if (on === names) return;
  names = on;
  gallery.classList.toggle("names", on);
  for (const [id, item] of tiles) {
    item.classList.remove("broken");
    const image = item.querySelector("img");
    if (on) image.removeAttribute("src");
    else image.src = thumbnailOf(id);
  }
}

/** Asks again for the thumbnails that could not be had. */
export function retry() {
  for (const item of gallery.querySelectorAll(".broken")) {
    item.classList.remove("broken"); // what is not displayed is not loaded
    const image = item.querySelector("img");
    const { src } = image;
    image.removeAttribute("src");
    image.src = src;
  }
}

/** `open(id)` for a photo; `leave()` where ↑ leaves the first row; `failed(count)` when a
 * thumbnail cannot be had.
 */
export function listen({ open, leave, failed }) {
  broken = failed;
  gallery.addEventListener("click", (event) => {
    const button = event.target.closest(".tile");
    if (button) open(Number(button.dataset.id));
  });
  gallery.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const from = focused();
    if (from === null) return;
    const ids = shown();
    const place = ids.indexOf(from);
    const to = {
      ArrowRight: () => ids[place + 1],
      ArrowLeft: () => ids[place - 1],
      ArrowDown: () => beside(from, ids.slice(place + 1)),
      ArrowUp: () => beside(from, ids.slice(0, place).reverse()) ?? leave(),
      Home: () => ids[0],
      End: () => ids.at(-1),
    }[event.key];
    if (!to) return;
    event.preventDefault();
    const id = to();
    if (id != null) focus(id);
  });
}

/** Among `ids`, nearest first: the photo of the next row that lies nearest across. */
function beside(from, ids) {
  const box = (id) => tiles.get(id).getBoundingClientRect();
  const { top, left, width } = box(from);
  const row = ids.map(box).find((other) => other.top !== top)?.top;
  const away = (id) => Math.abs(box(id).left + box(id).width / 2 - left - width / 2);
  const there = ids.filter((id) => box(id).top === row);
  return there.sort((a, b) => away(a) - away(b))[0] ?? null;
}
