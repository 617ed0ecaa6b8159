// Photos as parts of a query: chosen, dropped or pasted ones, and "like this" ones.

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

/** The query's photos beside its words.
 *
 * parts: {list, value, name, gone}, a name to be read and no number or hash;
 * remove(part) is called for its ×.
 */
export function show(parts, remove) {
  chips.replaceChildren(...parts.map((part) => chip(part, remove)));
  chips.hidden = !parts.length;
}

const WORDS = { uploads: "like", like: "more like", unlike: "less like" };

function chip(part, remove) {
  const { list, value, name, gone } = part;
  const item = document.createElement("li");
  item.className = `chip ${list}`;
  item.classList.toggle("gone", gone);
  const sign = element("span", "sign", list === "unlike" ? "\u2212" : "+");
  sign.ariaHidden = "true";
  const label = element("span", "chip-name", name);
  label.prepend(element("span", "unseen", `${WORDS[list]} `));
  const button = element("button", "", "×");
  button.type = "button";
  button.title = button.ariaLabel = `Remove: ${WORDS[list]} ${name}`;
  button.addEventListener("click", () => remove(part));
  item.title = `${WORDS[list]} ${name}`;
  item.append(sign);
  if (!gone) {
    const image = new Image();
    image.alt = "";
    image.addEventListener("error", () => image.remove(), { once: true });
    image.src = list === "uploads" ? uploadOf(value) : thumbnailOf(value);
    item.append(image);
  }
  item.append(label, button);
  return item;
}

function element(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}
