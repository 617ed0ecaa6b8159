// Why a photo was found: its cells as a heat map over it, the query's words underlined. The
// numbers behind both stand under "Details".

import { number, signed } from "./text.js";

const at = (id) => document.getElementById(id);
const canvas = at("heat");
const readout = at("heat-readout");
const HINT = "Point at the photo to read its parts.";
let cells = null; // [rows][columns]
let marked = null; // [row, column] of the cell that is read out

/** Shows an answer of /api/explain; null clears. `photos`: the query has some, too. */
export function show(explanation, photos = false) {
  cells = explanation?.cells ?? null;
  marked = null;
  at("why").hidden = !explanation;
  at("heat-label").hidden = !cells;
  showHeat();
  if (!explanation) return;
  const { words } = explanation;
  const typed = words.filter(({ word }) => !isMark(word));
  at("why-sum").textContent = meaning(typed);
  at("words").replaceChildren(...captions(words));
  at("similarity").textContent = summary(explanation, photos);
  at("methods").textContent = methods(explanation);
  at("values").replaceChildren(...words.flatMap(valueRow));
  at("numbers").hidden = false;
}

/** Says in plain words that there is no explanation, and why. */
export function showReason(reason) {
  show({ similarity: 0, cells: null, words: [] });
  at("numbers").hidden = true;
  at("why-sum").textContent = reason;
}

// Both ends of a caption take part in the sum, but nobody typed them: [CLS], <start>, …
const isMark = (word) => /^(\[.*\]|<.*>)$/.test(word);

function meaning(typed) {
  if (!typed.length) return "The photos of your query found this one.";
  if (typed.every(({ value }) => Math.abs(value) < 1e-6)) {
    return "This model reads a query as a whole: its single words have no parts.";
  }
  return "A solid line: the word speaks for this photo. A dotted line: against it.";
}

function summary({ similarity, cells, words }, photos) {
  const total = `Similarity ${number(similarity, 3)}`;
  const added = words.reduce((sum, { value }) => sum + value, 0);
  if (!words.length) return cells ? `${total}: the sum of the photo’s cells.` : `${total}.`;
  if (photos) return `${total}: the query’s words add ${signed(added)}, its photos the rest.`;
  return cells
    ? `${total}: the sum of the photo’s cells, and that of the query’s words.`
    : `${total}: the sum of the query’s words.`;
}

/** How the parts were found, in a sentence or two. */
function methods({ cells, words, cells_method, words_method }) {
  const shown = [];
  if (cells) shown.push(["cells", cells_method]);
  if (words.length) shown.push(["words", words_method]);
  const exact = shown.filter(([, method]) => method === "exact").map(([name]) => name);
  const others = shown.filter(([, method]) => method !== "exact").map(([name]) => name);
  const sentences = [];
  if (exact.length) sentences.push(`The parts of the ${exact.join(" and the ")} are exact.`);
  if (others.length) {
    sentences.push(
      `The parts of the ${others.join(" and the ")} are integrated gradients: ` +
        "they sum to the similarity within 1%.",
    );
  }
  return sentences.join(" ");
}

/** A list of words for each part of the query; a mark begins the next one. */
function captions(words) {
  const most = Math.max(...words.map(({ value }) => Math.abs(value)));
  const lists = [];
  let begins = true;
  for (const part of words) {
    if (isMark(part.word)) {
      begins = true;
      continue;
    }
    if (begins) {
      const list = document.createElement("ol");
      list.className = "words";
      list.ariaLabel = "Words of the query";
      lists.push(list);
      begins = false;
    }
    lists.at(-1).append(wordItem(part, most));
  }
  return lists;
}

function wordItem({ word, value }, most) {
  const item = document.createElement("li");
  item.className = value < 0 ? "negative" : "positive";
  item.style.setProperty("--share", `${Math.round((100 * Math.abs(value)) / most)}%`);
  const text = document.createElement("span");
  text.className = "word";
  text.textContent = word;
  const meaning = document.createElement("span");
  meaning.className = "unseen";
  meaning.textContent = value < 0 ? " (against it)" : " (for it)";
  item.append(text, meaning);
  return item;
}

function valueRow({ word, value }) {
  const name = document.createElement("dt");
  name.textContent = word;
  const part = document.createElement("dd");
  part.className = "value";
  part.textContent = signed(value);
  return [name, part];
}

/** Draws the heat map if it is asked for and there is one. */
export function showHeat() {
  const on = Boolean(cells) && at("heat-switch").checked;
  canvas.hidden = !on;
  at("heat-legend").hidden = readout.hidden = !on;
  at("viewer-figure").classList.toggle("heated", on);
  if (!on) return;
  const [row, column] = strongest();
  canvas.ariaLabel =
    `Heat map of ${cells.length} × ${cells[0].length} cells, ` +
    `strongest: ${cellText([row, column])}. Arrow keys read the cells.`;
  mark(null);
}

/** [row, column] of the cell with the largest part, whatever its sign. */
function strongest() {
  const sizes = cells.flat().map(Math.abs);
  const place = sizes.indexOf(Math.max(...sizes));
  return [Math.floor(place / cells[0].length), place % cells[0].length];
}

function cellText([row, column]) {
  const value = cells[row][column];
  const [top, left] = strongest();
  const share = Math.round(100 * Math.abs(value / (cells[top][left] || 1)));
  const text = `row ${row + 1}, column ${column + 1}: ${value < 0 ? "against" : "for"} it, ${share}%`;
  return at("numbers").open ? `${text} (${signed(value)})` : text;
}

function draw() {
  const scale = window.devicePixelRatio;
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round(canvas.clientHeight * scale);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false; // a cell is one number
  pen.drawImage(colours(), 0, 0, canvas.width, canvas.height);
  if (!marked) return;
  const [height, width] = [canvas.height / cells.length, canvas.width / cells[0].length];
  const box = [marked[1] * width, marked[0] * height, width, height];
  for (const [colour, line] of [["#fff", 4], ["#000", 1.5]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = line * scale;
    pen.strokeRect(...box);
  }
}

/** One pixel a cell: orange raises, blue lowers, the opacity says how much.
 *
 * The colours and the opacity are those of --mode=explain.
 */
function colours() {
  const small = document.createElement("canvas");
  [small.width, small.height] = [cells[0].length, cells.length];
  const pen = small.getContext("2d");
  const pixels = pen.createImageData(small.width, small.height);
  const most = Math.max(...cells.flat().map(Math.abs)) || 1;
  cells.flat().forEach((value, i) => {
    const colour = value < 0 ? [0, 114, 178] : [213, 94, 0];
    pixels.data.set([...colour, Math.round((0.75 * 255 * Math.abs(value)) / most)], 4 * i);
  });
  pen.putImageData(pixels, 0, 0);
  return small;
}

function mark(cell) {
  marked = cell;
  readout.textContent = cell ? `Cell in ${cellText(cell)}` : HINT;
  draw();
}

/** Reading single cells, by pointer and by arrow keys; a new size draws again. */
export function listen() {
  const clip = (value, length) => Math.max(0, Math.min(length - 1, value));
  canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => {
    const row = Math.floor((offsetY / canvas.clientHeight) * cells.length);
    const column = Math.floor((offsetX / canvas.clientWidth) * cells[0].length);
    mark([clip(row, cells.length), clip(column, cells[0].length)]);
  });
  canvas.addEventListener("pointerleave", () => mark(null));
  canvas.addEventListener("blur", () => mark(null));
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const step = move[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation(); // elsewhere in the dialog these keys change the photo
    const [row, column] = marked ? [marked[0] + step[0], marked[1] + step[1]] : [0, 0];
    mark([clip(row, cells.length), clip(column, cells[0].length)]);
  });
  at("heat-switch").addEventListener("change", showHeat);
  new ResizeObserver(() => canvas.hidden || draw()).observe(canvas);
}
