// What stands above the pictures: how many, the cut-off, the filters.

import { FILTERS } from "./state.js";
import { number, pictures, whole } from "./text.js";

const at = (id) => document.getElementById(id);
const slider = at("cut");

/** Offers what the index has: its cameras and folders, the days of its pictures. */
export function offer(status) {
  fill(at("camera"), "All cameras", status.cameras);
  fill(at("folder"), "All folders", status.folders);
  for (const name of ["after", "before"]) at(name).closest(".field").hidden = !status.first;
  const some = status.first || status.cameras.length || status.folders.length;
  at("filters-open").hidden = !some;
}

function fill(select, all, names) {
  const chosen = select.value;
  select.replaceChildren(new Option(all, ""), ...names.map((name) => new Option(name)));
  select.value = names.includes(chosen) ? chosen : "";
  select.closest(".field").hidden = !names.length;
}

export function showFilters(state) {
  for (const name of FILTERS) {
    const field = at(name);
    const value = state[name] ?? "";
    if (field.value === value) continue;
    // A bookmark's camera or folder may be gone from the index: it still says what is asked.
    const known = field.tagName !== "SELECT" || [...field].some((o) => o.value === value);
    if (!known) field.add(new Option(value));
    field.value = value;
  }
  const set = FILTERS.filter((name) => state[name]).length;
  at("filters-open").querySelector("span").textContent = set ? `Filters (${set})` : "Filters";
  at("filters-open").classList.toggle("set", set > 0);
  at("filters-clear").hidden = !set;
}

function toggleFilters(open) {
  at("filters").hidden = !open;
  at("filters-open").ariaExpanded = String(open);
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

/** Says how many pictures are there and how many the cut-off leaves. */
export function count({ hits, left, total, milliseconds, cut: least }) {
  at("cut-value").textContent = least === null ? "off" : number(least, 3);
  slider.ariaValueText =
    least === null ? "off" : `${number(least, 3)}: ${left} of ${hits} remain`;
  let text = pictures(hits);
  if (total > hits) text = `The best ${whole(hits)} of ${whole(total)}`;
  if (least !== null) text = `${whole(left)} of ${pictures(hits)}`;
  const time = document.createElement("small");
  time.textContent = `${milliseconds < 10 ? number(milliseconds, 1) : Math.round(milliseconds)} ms`;
  at("count").replaceChildren(text, " ", time);
}

/** A search that failed found no number of pictures. */
export const countNothing = () => at("count").replaceChildren();

/** `filter(changes)` for a filter; `cutting()` while the slider moves; `settle()` after. */
export function listen({ filter, cutting, settle }) {
  at("filters-open").addEventListener("click", () => toggleFilters(at("filters").hidden));
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const name of FILTERS) {
    at(name).addEventListener("change", () => filter({ [name]: at(name).value || null }));
  }
  at("filters-clear").addEventListener("click", () => {
    filter(Object.fromEntries(FILTERS.map((name) => [name, null])));
    at("filters-open").focus();
  });
  slider.addEventListener("input", cutting);
  slider.addEventListener("change", settle);
}
