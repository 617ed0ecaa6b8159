// What stands above the photos: how many, their order, how close they have to be, details.

import { number, photos, whole } from "./text.js";

const at = (id) => document.getElementById(id);
const slider = at("cut");
const DETAILS = "details"; // in the browser's memory

/** Photos that were looked for have a closeness, others an order; by date if any has one. */
export function show({ browsing, order, dated }) {
  for (const option of at("order").options) option.hidden = !dated && option.value !== "name";
  at("cut").closest("label").hidden = browsing;
  at("details").hidden = browsing;
  at("order").closest("label").hidden = !browsing;
  at("order").value = order;
}

/** Sets the slider's ends to those of the scores. */
export function scale(hits, cut) {
  const scores = hits.map((hit) => hit.score);
  const step = Number(slider.step);
  const least = Math.floor(Math.min(...scores, cut ?? Infinity) / step) * step;
  const most = Math.ceil(Math.max(...scores, cut ?? -Infinity) / step) * step;
  slider.min = hits.length ? least.toFixed(3) : 0;
  slider.max = hits.length ? most.toFixed(3) : 1;
  slider.disabled = !hits.length;
  slider.value = cut ?? slider.min;
}

/** The cut-off as the slider stands: at its low end there is none. */
export const cut = () => (slider.value === slider.min ? null : Number(slider.value));

/** Says how many photos there are and how many the cut-off leaves. */
export function count({ hits, left, total, browsing, milliseconds, cut: least }) {
  at("cut-value").replaceChildren(least === null ? "all" : whole(left));
  if (least !== null) at("cut-value").append(detail(` ≥ ${number(least, 3)}`));
  slider.ariaValueText = least === null ? "all" : `${left} of ${hits} remain`;
  let text = photos(hits);
  if (total > hits) text = `The ${browsing ? "first" : "best"} ${whole(hits)} of ${whole(total)}`;
  if (least !== null) text = `${whole(left)} of ${photos(hits)}`;
  at("count").replaceChildren(text);
  if (browsing) return;
  const time = milliseconds < 10 ? number(milliseconds, 1) : Math.round(milliseconds);
  at("count").append(detail(` in ${time} ms`));
}

/** What only those see who ask for details. */
function detail(text) {
  const node = document.createElement("span");
  node.className = "detail";
  node.textContent = text;
  return node;
}

/** Nothing was found yet. */
export const countNothing = () => at("count").replaceChildren();

function showDetails(on) {
  document.body.classList.toggle("detailed", on);
  at("details").ariaPressed = String(on);
}

// A browser may forbid its memory.
function remembered() {
  try {
    return localStorage.getItem(DETAILS) === "on";
  } catch {
    return false;
  }
}

function remember(on) {
  try {
    localStorage.setItem(DETAILS, on ? "on" : "off");
  } catch {
    // It counts until the page is closed.
  }
}

/** `cutting()` while the slider moves; `settle()` after; `sort(order)`. */
export function listen({ cutting, settle, sort }) {
  slider.addEventListener("input", cutting);
  slider.addEventListener("change", settle);
  at("order").addEventListener("change", () => sort(at("order").value));
  showDetails(remembered());
  at("details").addEventListener("click", () => {
    const on = !document.body.classList.contains("detailed");
    showDetails(on);
    remember(on);
  });
}
