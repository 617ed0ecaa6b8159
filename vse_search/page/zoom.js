// Zoom of the open photo: wheel, pinch, double click, keys, buttons; a drag moves it.

const at = (id) => document.getElementById(id);
const stage = at("stage");
const figure = at("viewer-figure");
const MOST = 16;
const STEP = 1.4; // of a key or a button
const TWICE = 2.5; // of a double click
let scale = 1;
let [x, y] = [0, 0]; // px from the middle of the stage
let zoomed = () => {};
const pointers = new Map(); // id → [x, y] of the fingers, or the mouse button, that are down

export const isZoomed = () => scale > 1;

export function reset() {
  [scale, x, y] = [1, 0, 0];
  place();
}

/** Zooms around a point of the window; without one, around the middle. */
function zoom(factor, clientX, clientY) {
  const box = stage.getBoundingClientRect();
  const px = (clientX ?? box.x + box.width / 2) - (box.x + box.width / 2);
  const py = (clientY ?? box.y + box.height / 2) - (box.y + box.height / 2);
  const next = Math.min(MOST, Math.max(1, scale * factor));
  x = px - ((px - x) * next) / scale;
  y = py - ((py - y) * next) / scale;
  scale = next < 1.02 ? 1 : next;
  place();
}

function move(byX, byY) {
  [x, y] = [x + byX, y + byY];
  place();
}

function place() {
  // The photo's edge goes no further than the stage's.
  const most = (of, within) => Math.max(0, (of * scale - within) / 2);
  const clip = (value, end) => Math.min(end, Math.max(-end, value));
  x = clip(x, most(figure.offsetWidth, stage.clientWidth));
  y = clip(y, most(figure.offsetHeight, stage.clientHeight));
  figure.style.transform = scale > 1 ? `translate(${x}px, ${y}px) scale(${scale})` : "";
  stage.classList.toggle("zoomed", scale > 1);
  at("zoom-value").textContent = `${Math.round(100 * scale)}%`;
  at("zoom-out").disabled = at("zoom-reset").disabled = scale === 1;
  at("zoom-in").disabled = scale === MOST;
  zoomed(figure.offsetWidth * scale * window.devicePixelRatio);
}

/** What a key does to the zoom; undefined: nothing. Arrows move what is zoomed. */
export function key(name) {
  const by = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[name];
  if (by && isZoomed()) return () => move(by[0] * 80, by[1] * 80);
  return {
    "+": () => zoom(STEP),
    "=": () => zoom(STEP), // + without Shift
    "-": () => zoom(1 / STEP),
    0: reset,
  }[name];
}

function press(event) {
  if (event.button > 0 || event.target.closest(".zoom")) return;
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
}

function drag(event) {
  // A mouse button may have been let go outside the stage.
  if (event.pointerType === "mouse" && !event.buttons) pointers.delete(event.pointerId);
  const from = pointers.get(event.pointerId);
  if (!from) return;
  const to = [event.clientX, event.clientY];
  const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  pointers.set(event.pointerId, to);
  if (other) {
    const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
    move((to[0] - from[0]) / 2, (to[1] - from[1]) / 2);
    zoom(apart(to) / Math.max(1, apart(from)), (to[0] + other[0]) / 2, (to[1] + other[1]) / 2);
  } else if (isZoomed()) {
    // Not earlier: what is captured clicks nothing below.
    if (!stage.hasPointerCapture(event.pointerId)) stage.setPointerCapture(event.pointerId);
    move(to[0] - from[0], to[1] - from[1]);
  }
}

function wheel(event) {
  event.preventDefault();
  const pixels = event.deltaY * (event.deltaMode ? 16 : 1);
  // A pinch on a touchpad comes as small turns of the wheel with Ctrl.
  zoom(Math.exp(-pixels * (event.ctrlKey ? 0.01 : 0.0015)), event.clientX, event.clientY);
}

/** `pixels(width)` when the photo is shown so wide, in pixels of the screen. */
export function listen(pixels) {
  zoomed = pixels;
  stage.addEventListener("wheel", wheel, { passive: false });
  stage.addEventListener("pointerdown", press);
  stage.addEventListener("pointermove", drag);
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, (event) => pointers.delete(event.pointerId));
  }
  stage.addEventListener("dblclick", (event) => {
    if (event.target.closest(".zoom")) return; // a button, pressed twice
    if (isZoomed()) reset();
    else zoom(TWICE, event.clientX, event.clientY);
  });
  at("zoom-in").addEventListener("click", () => zoom(STEP));
  at("zoom-out").addEventListener("click", () => zoom(1 / STEP));
  at("zoom-reset").addEventListener("click", reset);
  new ResizeObserver(place).observe(stage);
}
