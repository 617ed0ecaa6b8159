// The page: the address says what is asked for, and apply() makes the page show it.

import * as api from "./api.js";
import * as controls from "./controls.js";
import * as filters from "./filters.js";
import * as gallery from "./gallery.js";
import * as messages from "./messages.js";
import * as chosen from "./photos.js";
import * as state from "./state.js";
import { fileName, listed, photos, trainedOn, understands } from "./text.js";
import * as viewer from "./viewer.js";

const at = (id) => document.getElementById(id);
const MOST_PARTS = 32; // of a query: the server's limit
const paths = new Map(); // id → path, of every photo seen so far; null: it is gone
const goneUploads = new Set(); // their ids

let status = null; // the server's, of /api/status
// What the page shows: the answer to `asked`; null: nothing yet.
let shown = null; // {asked, hits, cutoff, stacks, total, milliseconds, hint}
let tried = null; // the last search that had an answer or an error, as JSON; null: try again
let shownQuery = "";
let searching = null; // an AbortController
let away = false; // the folder of the photos

/** What the address asks for; photos without an order come by date, if any has one. */
function read() {
  const asked = state.read();
  if (state.isBrowsing(asked)) asked.order ??= status?.first ? "newest" : "name";
  return asked;
}

/** Changes what is asked for, and shows it. */
function go(changes, options) {
  state.write(changes, options);
  return status ? apply() : start();
}

async function apply() {
  const asked = read();
  // What somebody is typing meanwhile stays.
  if (asked.query !== shownQuery) at("query").value = shownQuery = asked.query;
  document.title = asked.query ? `${asked.query} · Photo search` : "Photo search";
  filters.show(asked);
  const browsing = state.isBrowsing(asked);
  controls.show({ browsing, order: asked.order, dated: Boolean(status.first) });
  showParts(asked);
  nameLikes(asked);
  const shows = state.asks(asked) || browsing;
  at("welcome").hidden = shows || !status.pictures;
  at("results").hidden = !shows;
  if (await search(asked)) showViewer(read());
}

// ---- What is looked for --------------------------------------------------------------

/** The photos of a query: {list, value, name, gone}. */
function partsOf(asked) {
  const likes = (list) =>
    asked[list].map((value) => {
      const path = paths.get(value);
      const gone = path === null;
      const name = path ? fileName(path) : gone ? "a photo that is gone" : "a photo";
      return { list, value, name, gone };
    });
  const uploads = asked.uploads.map(({ id, name }) => {
    return { list: "uploads", value: id, name, gone: goneUploads.has(id) };
  });
  return [...uploads, ...likes("like"), ...likes("unlike")];
}

const showParts = (asked) => chosen.show(partsOf(asked), (part) => removeParts([part]));

/** A bookmark has the ids of indexed photos, people want their names. */
async function nameLikes(asked) {
  const unknown = [...asked.like, ...asked.unlike].filter((id) => !paths.has(id));
  if (!unknown.length) return;
  await Promise.all(unknown.map(find));
  showParts(read());
}

async function find(id) {
  try {
    paths.set(id, (await api.data(id)).path);
  } catch (error) {
    if (error.status === 404) paths.set(id, null);
  }
}

function removeParts(parts) {
  const asked = read();
  const stays = (list) => (value) =>
    !parts.some((part) => part.list === list && part.value === (value.id ?? value));
  const changes = ["uploads", "like", "unlike"].map((list) => [
    list,
    asked[list].filter(stays(list)),
  ]);
  go({ ...Object.fromEntries(changes), top: state.FIRST });
  at("query").focus();
}

/** More ("like") or less ("unlike") of a photo becomes a part of the query. */
async function like(list, id) {
  const asked = read();
  const [likes, unlikes] = [asked.like, asked.unlike].map((ids) => ids.filter((i) => i !== id));
  (list === "like" ? likes : unlikes).push(id);
  const changes = { like: likes, unlike: unlikes, picture: null, top: state.FIRST };
  await go({ ...changes, order: null });
  window.scrollTo(0, 0);
  gallery.focus(shown?.hits[0]?.id);
}

/** Photos from outside become parts of the query; each that cannot is named. */
async function take(files) {
  if (!status?.uploads) return;
  const sent = [];
  const refused = [];
  let stopped = null;
  busy(true);
  for (const file of files) {
    if (partsOf(read()).length + sent.length >= MOST_PARTS) {
      refused.push(`“${file.name}”: a query takes ${MOST_PARTS} photos`);
      continue;
    }
    try {
      sent.push({ id: (await api.upload(file)).upload, name: file.name || "your photo" });
    } catch (error) {
      const reason = await whyNotSent(error);
      if (reason === null) {
        stopped = error; // it would be the same for the next one
        break;
      }
      refused.push(`“${file.name}”: ${reason}`);
    }
  }
  busy(false);
  for (const { id } of sent) goneUploads.delete(id);
  if (sent.length) tried = null; // a bookmark's photo may be here again
  const before = read().uploads;
  const fresh = sent.filter(
    ({ id }, place) => ![...before, ...sent.slice(0, place)].some((other) => other.id === id),
  );
  const uploads = [...before, ...fresh];
  if (sent.length) await go({ uploads, picture: null, top: state.FIRST });
  if (stopped) return fail(stopped);
  if (!refused.length) return;
  const others = sent.length ? ` ${photos(sent.length)} of ${files.length} now in the query.` : "";
  messages.show(`Not used: ${refused.join("; ")}.${others}`);
}

/** What is wrong with a file; null: with the server. */
async function whyNotSent(error) {
  if (error instanceof api.Refused) return error.message.replace(/^the upload: /, "");
  if (!(error instanceof api.Unreachable)) return null;
  // A folder that was dropped, or a file that is gone meanwhile, if the server does answer.
  const answers = await api.status().then(() => true, () => false);
  return answers ? "could not be read or sent" : null;
}

function submit(event) {
  event.preventDefault();
  tried = null; // the same query again: the index may have changed
  const query = at("query").value.trim();
  const before = read();
  const order = query ? null : before.order;
  const cut = before.cut === state.ALL ? null : before.cut; // said of the query before
  go({ query, picture: null, top: state.FIRST, order, cut });
}

// ---- What is found -------------------------------------------------------------------

/** False where another search has begun meanwhile. */
async function search(asked) {
  const fields = state.asSearch(asked);
  const key = JSON.stringify([fields, asked.top]);
  searching?.abort();
  if (key === tried) {
    showCut(asked.cut);
    return true;
  }
  const controller = (searching = new AbortController());
  busy(true);
  try {
    const answer = await answerTo(asked, fields, controller.signal);
    tried = key;
    messages.clear();
    shown = { ...answer, asked };
    showHits();
  } catch (error) {
    if (error.name === "AbortError") return false;
    tried = key; // opening a photo does not try again; what was shown stays
    await failSearch(error, asked);
  } finally {
    if (controller === searching) busy(false);
  }
  return true;
}

async function answerTo(asked, fields, signal) {
  if (state.asks(asked)) {
    const top = Math.min(asked.top, state.MOST);
    return api.search({ ...fields, top, min_score: state.ALL }, signal); // what is hidden is here
  }
  const answer = { hits: [], cutoff: null, stacks: [], total: 0 };
  if (!state.isBrowsing(asked)) return answer;
  // "Show more" asks for what is not there yet.
  const same = shown && JSON.stringify(state.asSearch(shown.asked)) === JSON.stringify(fields);
  if (same && tried !== null && shown.hits.length < asked.top) {
    Object.assign(answer, { hits: shown.hits, stacks: shown.stacks });
  }
  do {
    const offset = answer.hits.length;
    const top = Math.min(asked.top - offset, state.MOST);
    const next = await api.search({ ...fields, offset, top }, signal);
    const known = new Set(answer.hits.map(({ id }) => id)); // the index may have changed
    const hits = next.hits.filter(({ id }) => !known.has(id));
    const stacks = next.stacks.map((stack) => stack.filter((id) => !known.has(id)));
    answer.hits = [...answer.hits, ...hits];
    answer.stacks = [...answer.stacks, ...stacks.filter(({ length }) => length > 1)];
    answer.total = next.total;
    if (!hits.length) break;
  } while (answer.hits.length < Math.min(asked.top, answer.total));
  return answer;
}

function showHits() {
  const { asked, hits, stacks } = shown;
  const browsing = state.isBrowsing(asked);
  for (const { id, path } of hits) paths.set(id, path);
  showParts(asked); // with names that were not known before
  const months = browsing && asked.order !== "name" && Boolean(status.first);
  gallery.show(hits, stacks, { months });
  if (!browsing) controls.scale(hits, leastScore(asked.cut));
  at("meant").textContent = shown.hint ?? "";
  showCut(asked.cut);
  if (!browsing && !state.asks(asked)) return;
  const count = gallery.cutOff(browsing ? null : leastScore(asked.cut));
  const best = count && !browsing ? `, the best ${hits[0].path}` : "";
  at("announcement").textContent = `${photos(shown.total ?? count)}${best}`;
}

/** What a photo has to score: as the address says, else as the model asks; null: anything. */
function leastScore(asPut) {
  return asPut === state.ALL ? null : (asPut ?? shown.cutoff);
}

function showCut(asPut) {
  if (!shown) return;
  const { asked, hits, milliseconds } = shown;
  const browsing = state.isBrowsing(asked);
  const cut = browsing ? null : leastScore(asPut);
  const left = gallery.cutOff(cut);
  at("more").hidden = at("nothing").hidden = true;
  if (!browsing && !state.asks(asked)) return controls.countNothing();
  const total = shown.total ?? (state.isFiltered(asked) ? null : status.pictures);
  controls.count({ hits: hits.length, left, total, browsing, milliseconds, cut });
  const others = browsing ? hits.length < total : hits.length >= asked.top && asked.top < state.MOST;
  const byModel = cut !== null && asPut === null;
  at("more").textContent = byModel ? "Show what fits less" : "Show more";
  // Others would score still less than what is hidden.
  at("more").hidden = left < hits.length ? !byModel : !others;
  at("nothing").hidden = left > 0;
  if (left > 0) return;
  at("more").hidden = true;
  if (!hits.length) nothing("No photo passes the filters.", "Clear filters");
  else if (byModel) nothing("Nothing found: no photo fits these words.", "Show the closest anyway");
  else nothing("No photo is as close as that.", "Show them all");
}

function nothing(text, action) {
  at("nothing").querySelector("p").textContent = text;
  at("nothing-action").textContent = action;
}

async function more() {
  const asked = read();
  if (asked.cut === null && gallery.cutOff(leastScore(null)) < shown.hits.length) {
    return go({ cut: state.ALL }, { replace: true });
  }
  const known = shown.hits.length;
  await go({ top: read().top + state.FIRST }, { replace: true });
  gallery.focus(shown?.hits[known]?.id);
}

// ---- One photo -----------------------------------------------------------------------

function showViewer(asked) {
  if (asked.picture === null) {
    const last = viewer.close();
    if (last !== null) gallery.focus(last);
    return;
  }
  const [before, after] = beside(asked.picture);
  viewer.neighbours(before, after);
  const hit = shown?.hits.find(({ id }) => id === asked.picture);
  const found = shown?.asked ?? asked;
  const { explains } = status;
  viewer.open(asked.picture, { hit, asked: found, explains, fail: closeAndFail });
}

function beside(id) {
  const ids = gallery.shown();
  const place = ids.indexOf(id);
  return place < 0 ? [] : [ids[place - 1], ids[place + 1]];
}

function step(by) {
  const [before, after] = beside(read().picture);
  const id = by < 0 ? before : after;
  if (id !== undefined) go({ picture: id }, { replace: true });
}

/** The dialog was closed: Back, if opening it was a step of its own. */
function closed() {
  if (read().picture === null) return;
  if (history.state?.opened) history.back();
  else go({ picture: null }, { replace: true });
}

// ---- What goes wrong -----------------------------------------------------------------

function busy(on) {
  document.body.classList.toggle("busy", on);
  at("main").ariaBusy = String(on);
}

function fail(error, actions = {}) {
  if (error instanceof api.TokenNeeded) return askForToken();
  if (error instanceof api.Unreachable) {
    return messages.show(error.message, { "Try again": tryAgain });
  }
  if (!(error instanceof api.Refused)) throw error;
  messages.show(error.message, actions);
}

function tryAgain() {
  tried = null;
  go({}, { replace: true });
}

/** Without filters: all photos stay, where nothing is looked for. */
const clearFilters = () => go({ ...state.NO_FILTERS, order: read().order, top: state.FIRST });

/** Says why a search failed, with the way out: its filters or its photos can be taken away. */
async function failSearch(error, asked) {
  if (!(error instanceof api.Refused)) return fail(error);
  const actions = {};
  if (state.isFiltered(asked)) {
    actions["Clear filters"] = clearFilters;
    filters.open();
  }
  const gone = error.status === 404 ? await goneParts(asked) : [];
  if (gone.length) {
    showParts(asked);
    actions["Remove"] = () => removeParts(gone);
  }
  const reason = whyGone(gone) ?? whyFiltered(error.message, asked) ?? error.message;
  const rest = shown?.hits.length ? " Below are still the photos of before." : "";
  messages.show(`${reason.replace(/([^.!?])$/, "$1.")}${rest}`, actions);
}

/** The photos of a query that the server does not have any more. */
async function goneParts(asked) {
  const check = async ({ id }) => (await api.keeps(id)) || goneUploads.add(id);
  const likes = [...asked.like, ...asked.unlike];
  await Promise.all([...asked.uploads.map(check), ...likes.map(find)]);
  return partsOf(asked).filter(({ gone }) => gone);
}

function whyGone(gone) {
  const uploads = gone.filter(({ list }) => list === "uploads").map(({ name }) => `“${name}”`);
  if (uploads.length) {
    return (
      `The server no longer has ${listed(uploads)}: it keeps the last 64 photos that it was ` +
      "given, until it ends. Choose the file again"
    );
  }
  return gone.length ? "A photo of this query is no longer in the index" : null;
}

function whyFiltered(reason, { folder, camera }) {
  if (reason.startsWith("folder: no image")) return `No photo is in the folder “${folder}”`;
  if (reason.startsWith("camera: no image")) return `No photo is of the camera “${camera}”`;
  return null;
}

/** The message would lie behind the dialog. */
async function closeAndFail(error) {
  await go({ picture: null }, { replace: true });
  if (error.status === 404) messages.show("This photo is no longer in the index.");
  else fail(error);
}

/** Says it once where the folder of the photos is away, and shows their names alone. */
async function lookForFolder() {
  const { there } = await api.folder().catch(() => ({ there: true })); // that is said elsewhere
  const returned = away && there;
  away = !there;
  gallery.showNames(away);
  if (returned) at("away").hidden = true;
  if (!away) return;
  at("away").querySelector("p").textContent =
    `The folder of the photos, “${status.folder}”, is away: it was moved or renamed, or its ` +
    "drive is not connected. Search works, and the photos are shown when it is back.";
  at("away").hidden = false;
}

let looking = null; // a timer: many thumbnails fail together

function thumbnailFailed() {
  if (away || looking) return;
  looking = setTimeout(async () => {
    await lookForFolder();
    looking = null;
    const count = document.querySelectorAll("#gallery .broken").length;
    if (away || !count) return;
    at("away").querySelector("p").textContent =
      `${photos(count)} cannot be shown: ${count === 1 ? "its file was" : "their files were"} ` +
      "moved or deleted, or the drive is not connected.";
    at("away").hidden = false;
  }, 300);
}

async function lookAgain() {
  at("away").hidden = true;
  await lookForFolder();
  if (!away) gallery.retry();
}

// ---- Starting ------------------------------------------------------------------------

function askForToken() {
  viewer.close();
  messages.clear();
  for (const id of ["welcome", "results", "search", "browse", "empty"]) at(id).hidden = true;
  at("token-form").hidden = false;
  at("token").focus();
}

async function giveToken(event) {
  event.preventDefault();
  at("token-problem").textContent = "";
  try {
    await api.giveToken(at("token").value);
  } catch (error) {
    at("token-problem").textContent = error.message;
    at("token").select();
    return;
  }
  at("token").value = "";
  at("token-form").hidden = true;
  at("search").hidden = at("browse").hidden = false;
  await start();
}

async function start() {
  try {
    await loadStatus();
  } catch (error) {
    return fail(error);
  }
  messages.clear();
  lookForFolder(); // a drive that sleeps takes its time
  await apply();
  if (read().picture === null) at("query").focus();
}

async function loadStatus() {
  status = await api.status();
  const folder = `${photos(status.pictures)} in “${status.folder}”.`;
  const about = `${folder} ${trainedOn(status)}${understands(status)}`;
  for (const place of document.querySelectorAll(".about")) place.textContent = about;
  at("empty").hidden = status.pictures > 0;
  at("browse").hidden = !status.pictures;
  for (const link of document.querySelectorAll(".browse")) {
    link.href = status.first ? "#order=newest" : "#order=name";
  }
  for (const id of ["choose", "choose-example"]) at(id).hidden = !status.uploads;
  filters.offer(status);
}

function keys(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || document.querySelector("dialog[open]")) {
    return;
  }
  if (event.target === at("query") && event.key === "ArrowDown" && gallery.shown().length) {
    event.preventDefault();
    return gallery.focus(gallery.shown()[0]);
  }
  if (event.target.closest("input:not([type=range]), select")) return;
  const id = gallery.focused();
  const act = {
    "/": () => at("query").select(),
    "?": () => at("help").showModal(),
    m: () => id !== null && like("like", id),
    l: () => id !== null && like("unlike", id),
    s: () => id !== null && gallery.toggle(id),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

function listen() {
  at("search").addEventListener("submit", submit);
  at("token-form").addEventListener("submit", giveToken);
  at("look-again").addEventListener("click", lookAgain);
  at("more").addEventListener("click", more);
  at("nothing-action").addEventListener("click", () =>
    shown.hits.length ? go({ cut: state.ALL }) : clearFilters(),
  );
  at("help-open").addEventListener("click", () => at("help").showModal());
  at("help-close").addEventListener("click", () => at("help").close());
  for (const example of document.querySelectorAll("[data-query]")) {
    example.addEventListener("click", () => go({ query: example.dataset.query }));
  }
  document.addEventListener("keydown", keys);
  window.addEventListener("popstate", () => status && apply());
  document.addEventListener("visibilitychange", () => {
    if (!status || document.hidden) return;
    loadStatus().catch(fail); // the index may have grown
    if (away) lookForFolder();
  });
  messages.listen();
  chosen.listen(take);
  gallery.listen({
    open: (id) => go({ picture: id }),
    leave: () => at("query").focus(),
    failed: thumbnailFailed,
  });
  viewer.listen({ step, like, closed });
  filters.listen({
    filter: (changes, options) => go({ ...changes, top: state.FIRST }, options),
    clear: clearFilters,
  });
  controls.listen({
    cutting: () => showCut(controls.cut() ?? state.ALL),
    settle: () => go({ cut: controls.cut() ?? state.ALL }, { replace: true }),
    sort: (order) => go({ order, top: state.FIRST }),
  });
}

listen();
start();
