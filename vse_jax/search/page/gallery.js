// The thumbnails, best first: rows of one height, one tab stop, arrow keys.

import { thumbnailOf } from "./api.js";
import { fileName, number } from "./text.js";

const gallery = document.getElementById("gallery");
let tiles = new Map(); // id → its <li>, in the order of the scores
let current = null; // the id that Tab reaches

/** Shows the hits; pictures that were there already keep their place's node. */
export function show(hits) {
  tiles = new Map(hits.map((hit) => [hit.id, update(tiles.get(hit.id) ?? tile(hit), hit)]));
  gallery.replaceChildren(...tiles.values());
  reach(tiles.has(current) ? current : hits[0]?.id);
}

function tile(hit) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "tile";
  button.dataset.id = hit.id;
  button.tabIndex = -1;
  const image = new Image(hit.width, hit.height);
  image.loading = "lazy";
  image.decoding = "async";
  image.draggable = false;
  image.src = thumbnailOf(hit.id);
  image.addEventListener("error", () => button.classList.add("broken"), { once: true });
  const score = document.createElement("span");
  score.className = "score";
  const name = document.createElement("span");
  name.className = "name";
  name.ariaHidden = "true"; // the picture's alt text says it
  button.append(image, score, name);
  item.append(button);
  // A panorama would fill a row alone: it is shown whole, in a place of this shape.
  const ratio = Math.min(3, Math.max(0.5, hit.width / hit.height));
  item.style.setProperty("--ratio", ratio.toFixed(4));
  return item;
}

function update(item, hit) {
  item.dataset.score = hit.score;
  item.querySelector("img").alt = hit.path; // a filter may ask for another copy of it
  item.querySelector(".score").textContent = number(hit.score);
  const copies = hit.copies ? ` · ${hit.copies + 1} copies` : "";
  item.querySelector(".name").textContent = fileName(hit.path) + copies;
  return item;
}

/** Hides the pictures that score below `least`; returns how many are left. */
export function cutOff(least) {
  let left = 0;
  for (const item of tiles.values()) {
    item.hidden = least !== null && Number(item.dataset.score) < least;
    if (!item.hidden) left += 1;
  }
  if (tiles.get(current)?.hidden) reach(shown()[0]);
  return left;
}

/** The ids of the pictures that the cut-off leaves. */
export const shown = () =>
  [...tiles].filter(([, item]) => !item.hidden).map(([id]) => id);

const buttonOf = (id) => tiles.get(id)?.firstChild;

function reach(id) {
  const before = buttonOf(current);
  if (before) before.tabIndex = -1;
  current = id ?? null;
  const button = buttonOf(current);
  if (button) button.tabIndex = 0;
}

/** Focuses a picture, the first one where `id` is not shown. */
export function focus(id) {
  const ids = shown();
  reach(ids.includes(id) ? id : ids[0]);
  buttonOf(current)?.focus();
}

/** The picture that has the focus, or null. */
export const focused = () => {
  const button = document.activeElement?.closest(".tile");
  return button ? Number(button.dataset.id) : null;
};

/** `open(id)` is called for a picture; `leave()` where ↑ leaves the first row. */
export function listen({ open, leave }) {
  gallery.addEventListener("click", (event) => {
    const button = event.target.closest(".tile");
    if (button) open(Number(button.dataset.id));
  });
  gallery.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const from = focused();
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

/** Among `ids`, nearest first: the picture of the next row that lies nearest across. */
function beside(from, ids) {
  const box = (id) => tiles.get(id).getBoundingClientRect();
  const { top, left, width } = box(from);
  const row = ids.map(box).find((other) => other.top !== top)?.top;
  const away = (id) => Math.abs(box(id).left + box(id).width / 2 - left - width / 2);
  const there = ids.filter((id) => box(id).top === row);
  return there.sort((a, b) => away(a) - away(b))[0] ?? null;
}
