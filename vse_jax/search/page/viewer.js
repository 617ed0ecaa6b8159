// One picture, large: its data, why it was found, more and less like it.

import * as api from "./api.js";
import * as explanation from "./explanation.js";
import { asQuery } from "./state.js";
import { fileName, moment, size, whole } from "./text.js";

const at = (id) => document.getElementById(id);
const dialog = at("viewer");
let shownId = null;
let loading = null; // an AbortController

/** Opens the dialog with a picture, or shows another one in it.
 *
 * `hit`: the picture as the search `asked` found it; without it there is no explanation.
 */
export async function open(id, { hit, asked, explains, fail }) {
  loading?.abort();
  loading = new AbortController();
  const { signal } = loading;
  shownId = id;
  explanation.show(null);
  if (hit) showPicture(hit);
  at("data").replaceChildren();
  if (!dialog.open) dialog.showModal();
  try {
    const [data] = await Promise.all([
      api.data(id, signal),
      hit && explains ? explain(id, asked, signal) : null,
    ]);
    if (!hit) showPicture(data);
    showData(data);
    if (hit && !explains) explanation.showReason("This model’s pooling has no exact parts.");
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  }
}

/** Closes the dialog; returns the id of the picture that it showed, or null. */
export function close() {
  loading?.abort();
  const last = shownId;
  shownId = null;
  if (dialog.open) dialog.close();
  return last;
}

/** What stands between the first and the last picture has both neighbours. */
export function neighbours(previous, next) {
  at("viewer-previous").disabled = previous == null;
  at("viewer-next").disabled = next == null;
}

function showPicture({ id, path, width, height }) {
  const image = at("viewer-picture");
  const figure = at("viewer-figure");
  figure.style.setProperty("--ratio", width / height);
  figure.style.setProperty("--width", width);
  // The thumbnail is there at once, the large picture comes over it.
  figure.style.backgroundImage = `url("${api.thumbnailOf(id)}")`;
  [image.width, image.height] = [width, height];
  image.src = api.pictureOf(id);
  image.alt = path;
  at("viewer-name").textContent = fileName(path);
  at("viewer-full").href = api.fullSizeOf(id);
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
    const pictures = [asked.like, asked.unlike, asked.uploads].some((list) => list.length);
    explanation.show(await api.explain({ ...asQuery(asked), id }, signal), pictures);
  } catch (error) {
    if (!(error instanceof api.Refused)) throw error;
    explanation.showReason(error.message);
  }
}

/** `step(±1)` to a neighbour, `like(list, id)` for more or less of it, `closed()` after. */
export function listen({ step, like, closed }) {
  explanation.listen();
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
    const act = {
      ArrowLeft: () => step(-1),
      ArrowRight: () => step(1),
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
