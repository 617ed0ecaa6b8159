// Pictures as parts of a query: chosen, dropped or pasted ones, and "like this" ones.

import { thumbnailOf, uploadOf } from "./api.js";

const file = document.getElementById("file");
const drop = document.getElementById("drop");
const chips = document.getElementById("chips");

/** `take(files)` gets what was chosen, dropped or pasted. */
export function listen(take) {
  for (const id of ["choose", "choose-example"]) {
    document.getElementById(id).addEventListener("click", () => file.click());
  }
  file.addEventListener("change", () => {
    take([...file.files]);
    file.value = ""; // the same file may be chosen again
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    take(files);
  });
  listenToDrops(take);
}

function listenToDrops(take) {
  const hasFiles = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    drop.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.hidden = true; // it left the window
  });
  document.addEventListener("drop", (event) => {
    drop.hidden = true;
    if (!hasFiles(event)) return;
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
}

/** The query's pictures beside its words. `nameOf(id)` names an indexed one. */
export function show(state, nameOf, remove) {
  const parts = [
    ...state.uploads.map((hex) => {
      return { list: "uploads", value: hex, source: uploadOf(hex), text: "your picture" };
    }),
    ...state.like.map((id) => likeness("like", id, `more like ${nameOf(id)}`)),
    ...state.unlike.map((id) => likeness("unlike", id, `less like ${nameOf(id)}`)),
  ];
  chips.replaceChildren(...parts.map((part) => chip(part, remove)));
  chips.hidden = !parts.length;
}

const likeness = (list, id, text) => ({ list, value: id, source: thumbnailOf(id), text });

function chip({ list, value, source, text }, remove) {
  const item = document.createElement("li");
  item.className = `chip ${list}`;
  const image = new Image();
  image.alt = text;
  image.src = source;
  const sign = document.createElement("span");
  sign.textContent = list === "unlike" ? "\u2212" : "+";
  sign.ariaHidden = "true";
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "×";
  button.ariaLabel = `Remove: ${text}`;
  button.title = button.ariaLabel;
  button.addEventListener("click", () => remove(list, value));
  item.title = text;
  item.append(sign, image, button);
  return item;
}
