// One photo, large: its data, why it was found, more and less like it, zoom, a copy to keep.

import * as api from "./api.js";
import * as explanation from "./explanation.js";
import { asks, asQuery } from "./state.js";
import { fileName, moment, size, whole } from "./text.js";
import * as zoom from "./zoom.js";

const at = (id) => document.getElementById(id);
const dialog = at("viewer");
const image = at("viewer-photo");
let shownId = null;
let full = null; // {id, width} of a photo that is shown smaller than it is
let loading = null; // an AbortController

/** Opens the dialog with a photo, or shows another one in it.
 *
 * `hit`: the photo as the search `asked` found it; without it there is no explanation.
 */
export async function open(id, { hit, asked, explains, fail }) {
  loading?.abort();
  loading = new AbortController();
  const { signal } = loading;
  shownId = id;
  explanation.show(null);
  if (hit) showPhoto(hit);
  at("data").replaceChildren();
  if (!dialog.open) dialog.showModal();
  const found = hit && asks(asked);
  try {
    const [data] = await Promise.all([
      api.data(id, signal),
      found && explains ? explain(id, asked, signal) : null,
    ]);
    if (!hit) showPhoto(data);
    showData(data);
    if (found && !explains) explanation.showReason("This model cannot say why.");
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  }
}

/** Closes the dialog; returns the id of the photo that it showed, or null. */
export function close() {
  loading?.abort();
  const last = shownId;
  shownId = null;
  if (dialog.open) dialog.close();
  return last;
}

/** What stands between the first and the last photo has both neighbours. */
export function neighbours(previous, next) {
  at("viewer-previous").disabled = previous == null;
  at("viewer-next").disabled = next == null;
}

function showPhoto({ id, path, width, height }) {
  const figure = at("viewer-figure");
  zoom.reset();
  figure.style.setProperty("--ratio", width / height);
  figure.style.setProperty("--width", width);
  // The thumbnail is there at once, the large photo comes over it.
  figure.style.backgroundImage = `url("${api.thumbnailOf(id)}")`;
  figure.classList.remove("broken");
  at("stage-problem").hidden = true;
  [image.width, image.height] = [width, height];
  image.src = api.photoOf(id);
  image.alt = path;
  full = { id, width };
  at("viewer-name").textContent = fileName(path);
  at("viewer-full").href = api.fullSizeOf(id);
  at("viewer-download").href = api.fileOf(id);
  at("viewer-download").download = fileName(path);
}

/** Zoomed in, a photo that came smaller than it is comes again as large as it is. */
function sharpen(shownWidth) {
  const came = image.naturalWidth;
  if (!full || !came || came >= full.width || shownWidth <= 1.1 * came) return;
  const { id } = full;
  full = null;
  const larger = new Image();
  larger.addEventListener("load", () => {
    if (shownId === id) image.src = larger.src;
  });
  larger.src = api.fullSizeOf(id);
}

function showData({ path, width, height, taken, camera, bytes, copies }) {
  const rows = [
    ["Path", path],
    ["Taken", taken && moment(taken)],
    ["Camera", camera],
    ["Size", `${whole(width)} × ${whole(height)} px, ${size(bytes)}`],
    ...copies.map((copy) => ["Copy", copy]),
  ];
  const children = rows
    .filter(([, text]) => text)
    .flatMap(([name, text]) => [element("dt", name), element("dd", text)]);
  at("data").replaceChildren(...children);
}

function element(tag, text) {
  const node = document.createElement(tag);
  node.textContent = text;
  return node;
}

async function explain(id, asked, signal) {
  try {
    const photos = [asked.like, asked.unlike, asked.uploads].some((list) => list.length);
    explanation.show(await api.explain({ ...asQuery(asked), id }, signal), photos);
  } catch (error) {
    if (!(error instanceof api.Refused)) throw error;
    const gone = error.status === 404;
    explanation.showReason(gone ? "The photo’s file cannot be read now." : error.message);
  }
}

/** `step(±1)` to a neighbour, `like(list, id)` for more or less of it, `closed()` after. */
export function listen({ step, like, closed }) {
  explanation.listen();
  zoom.listen(sharpen);
  image.addEventListener("error", () => {
    at("viewer-figure").classList.add("broken");
    at("stage-problem").hidden = false;
  });
  at("viewer-close").addEventListener("click", closed);
  at("viewer-previous").addEventListener("click", () => step(-1));
  at("viewer-next").addEventListener("click", () => step(1));
  at("viewer-like").addEventListener("click", () => like("like", shownId));
  at("viewer-unlike").addEventListener("click", () => like("unlike", shownId));
  dialog.addEventListener("close", closed);
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) closed(); // beside the dialog's content
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const act =
      zoom.key(event.key) ??
      {
        ArrowLeft: () => step(-1),
        ArrowRight: () => step(1),
        d: () => at("viewer-download").click(),
        m: () => like("like", shownId),
        l: () => like("unlike", shownId),
        w: () => at("heat-label").hidden || at("heat-switch").click(),
      }[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  });
}
