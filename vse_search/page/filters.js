// Which photos may be found: days, a camera, a folder. A filter counts when it is whole.

import { FILTERS, NO_FILTERS } from "./state.js";

const at = (id) => document.getElementById(id);
const hint = at("filters-hint");
const DATES = ["after", "before"];
const FIRST_YEAR = 1826; // of the oldest photo that is left
const PAUSE_MS = 500; // after a key: 1 may become 12
let set = { ...NO_FILTERS }; // what the shown search has
let folders = [];

/** Offers what the index has: its cameras and folders, the days of its photos. */
export function offer(status) {
  fillCameras(status.cameras);
  folders = status.folders;
  at("folders").replaceChildren(...folders.map((name) => new Option("", name)));
  at("folder").closest(".field").hidden = !folders.length && !set.folder;
  const next = `${new Date().getFullYear() + 1}-12-31`;
  for (const name of DATES) {
    at(name).min = `${FIRST_YEAR}-01-01`;
    at(name).max = status.last > next ? status.last : next;
    at(name).closest(".field").hidden = !status.first && !set[name];
  }
  const some = status.first || status.cameras.length || folders.length;
  at("filters-open").hidden = !some && !FILTERS.some((name) => set[name]);
}

function fillCameras(names) {
  const camera = at("camera");
  const options = names.map((name) => new Option(name));
  camera.replaceChildren(new Option("All cameras", ""), ...options);
  showCamera(set.camera);
  camera.closest(".field").hidden = !names.length && !set.camera;
}

function showCamera(name) {
  const camera = at("camera");
  // A bookmark's camera may be gone from the index: it still says what is asked.
  const known = !name || [...camera].some((option) => option.value === name);
  if (!known) camera.add(new Option(name));
  camera.value = name ?? "";
}

/** Shows what the address asks for. */
export function show(state) {
  for (const name of FILTERS) {
    set[name] = state[name];
    if (name === "camera") showCamera(state.camera);
    else if (at(name).value !== (state[name] ?? "")) at(name).value = state[name] ?? "";
    if (state[name]) at(name).closest(".field").hidden = false;
  }
  say("");
  const count = FILTERS.filter((name) => state[name]).length;
  at("filters-open").querySelector("span").textContent = count ? `Filters (${count})` : "Filters";
  at("filters-open").classList.toggle("set", count > 0);
  if (count) at("filters-open").hidden = false;
  at("filters-clear").hidden = !count;
}

export function open(on = true) {
  at("filters").hidden = !on;
  at("filters-open").ariaExpanded = String(on);
}

function say(text, field) {
  hint.textContent = text;
  for (const name of FILTERS) at(name).ariaInvalid = String(at(name) === field);
}

/** `filter(changes, {replace})`; `replace`: one step of Back undoes all of a field's edits.
 * `clear()` takes all of them away.
 */
export function listen({ filter, clear }) {
  at("filters-open").addEventListener("click", () => open(at("filters").hidden));
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("filters-clear").addEventListener("click", () => {
    clear();
    at("filters-open").focus();
  });
  at("camera").addEventListener("change", () => filter({ camera: at("camera").value || null }));
  for (const name of DATES) listenToDate(name, filter);
  listenToFolder(filter);
}

/** A date field tells of every key: of year 2, 20 and 201 on the way to 2019. */
function listenToDate(name, filter) {
  const field = at(name);
  let timer = null;
  let changed = false; // since it has the focus
  const take = () => {
    clearTimeout(timer);
    const value = field.value || null;
    if (!field.validity.valid || value === set[name]) return;
    filter({ [name]: value }, { replace: changed });
    changed = true;
  };
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(take, PAUSE_MS);
  };
  field.addEventListener("input", wait);
  field.addEventListener("keyup", (event) => {
    if (event.key === "Enter") take();
    else if (!field.value) wait(); // the last part of a date was cleared: no event tells
  });
  field.addEventListener("focus", () => (changed = false));
  field.addEventListener("blur", () => {
    take();
    if (field.validity.valid) return;
    field.value = set[name] ?? "";
    const last = field.max.slice(0, 4);
    say(`A date needs a day, a month and a year from ${FIRST_YEAR} to ${last}.`, field);
  });
}

function listenToFolder(filter) {
  const field = at("folder");
  const take = () => {
    const name = completed(field.value);
    if (name === undefined) {
      return say(`No folder with photos is called “${field.value.trim()}”.`, field);
    }
    field.value = name ?? "";
    say("");
    if (name !== set.folder) filter({ folder: name });
  };
  field.addEventListener("change", take);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    field.value = set.folder ?? "";
    say("");
  });
}

/** The folder that a text means: its name in any case, or a part that only one has.
 *
 * null: all folders; undefined: none is meant.
 */
function completed(text) {
  const plain = (name) => name.normalize().toLowerCase();
  const wanted = plain(text).replaceAll("\\", "/").replace(/^[\s/]+|[\s/]+$/g, "");
  if (!wanted) return null;
  const exact = folders.find((name) => name === text) ?? folders.find((n) => plain(n) === wanted);
  if (exact !== undefined) return exact;
  const within = folders.filter((name) => plain(name).includes(wanted));
  // 'rome' means trips/rome, not trips/rome/colosseum.
  const ends = within.filter((name) => `/${plain(name)}`.endsWith(`/${wanted}`));
  if (ends.length === 1) return ends[0];
  return within.length === 1 ? within[0] : undefined;
}
