// The page: the address says what is asked for, and apply() makes the page show it.

import * as api from "./api.js";
import * as controls from "./controls.js";
import * as gallery from "./gallery.js";
import * as pictures from "./pictures.js";
import * as state from "./state.js";
import { number, pictures as counted } from "./text.js";
import * as viewer from "./viewer.js";

const at = (id) => document.getElementById(id);
const paths = new Map(); // id → path, of every picture found so far
const NO_FILTERS = Object.fromEntries(state.FILTERS.map((name) => [name, null]));

let status = null; // the server's, of /api/status
let hits = [];
let milliseconds = 0;
let shownQuery = "";
let searched = null; // the search whose answer is shown, as JSON
let searching = null; // an AbortController

/** Changes what is asked for, and shows it. */
function go(changes, options) {
  state.write(changes, options);
  return status ? apply() : start();
}

async function apply() {
  const asked = state.read();
  // What somebody is typing meanwhile stays.
  if (asked.query !== shownQuery) at("query").value = shownQuery = asked.query;
  document.title = asked.query ? `${asked.query} · Picture search` : "Picture search";
  controls.showFilters(asked);
  showParts(asked);
  const asks = state.asks(asked);
  at("welcome").hidden = asks || !status.pictures;
  at("results").hidden = !asks;
  if (await search(asked)) showViewer(state.read());
}

const showParts = (asked) =>
  pictures.show(asked, (id) => paths.get(id) ?? `picture ${id}`, removePart);

/** False where another search has begun meanwhile. */
async function search(asked) {
  const fields = state.asSearch(asked);
  const key = JSON.stringify(fields);
  searching?.abort();
  if (key === searched) {
    showCut(asked.cut);
    return true;
  }
  const controller = (searching = new AbortController());
  busy(true);
  try {
    const asks = state.asks(asked);
    const answer = asks ? await api.search(fields, controller.signal) : { hits: [] };
    problem(null);
    searched = key;
    milliseconds = answer.milliseconds ?? 0;
    showHits(answer.hits, asked);
  } catch (error) {
    if (error.name === "AbortError") return false;
    searched = null;
    fail(error);
    showHits([], asked);
  } finally {
    if (controller === searching) busy(false);
  }
  return true;
}

function showHits(found, asked) {
  hits = found;
  for (const { id, path } of hits) paths.set(id, path);
  showParts(asked); // with names that were not known before
  gallery.show(hits);
  controls.scale(hits, asked.cut);
  showCut(asked.cut);
  if (searched === null || !state.asks(asked)) return;
  const best = hits.length ? `, the best ${hits[0].path} with ${number(hits[0].score)}` : "";
  at("announcement").textContent = `${counted(hits.length)} found${best}`;
}

function showCut(cut) {
  const asked = state.read();
  const left = gallery.cutOff(cut);
  const filtered = state.FILTERS.some((name) => asked[name]);
  const total = filtered ? null : status.pictures;
  if (searched === null) controls.countNothing();
  else controls.count({ hits: hits.length, left, total, milliseconds, cut });
  const all = hits.length < asked.top || asked.top + state.FIRST > state.MOST;
  at("more").hidden = all || left < hits.length; // more of them would score still less
  at("nothing").hidden = left > 0 || searched === null || !state.asks(asked);
  if (hits.length) {
    const [least, best] = [cut ?? 0, hits[0].score].map((score) => number(score, 3));
    nothing(`No picture scores ${least} or more; the best has ${best}.`, "Show them all");
  } else {
    nothing("No picture passes the filters.", "Clear filters");
  }
}

function nothing(text, action) {
  at("nothing").querySelector("p").textContent = text;
  at("nothing-action").textContent = action;
}

function showViewer(asked) {
  if (asked.picture === null) {
    const last = viewer.close();
    if (last !== null) gallery.focus(last);
    return;
  }
  const [before, after] = beside(asked.picture);
  viewer.neighbours(before, after);
  const hit = hits.find(({ id }) => id === asked.picture);
  viewer.open(asked.picture, { hit, asked, explains: status.explains, fail: closeAndFail });
}

function beside(id) {
  const ids = gallery.shown();
  const place = ids.indexOf(id);
  return place < 0 ? [] : [ids[place - 1], ids[place + 1]];
}

function step(by) {
  const [before, after] = beside(state.read().picture);
  const id = by < 0 ? before : after;
  if (id !== undefined) go({ picture: id }, { replace: true });
}

/** The dialog was closed: Back, if opening it was a step of its own. */
function closed() {
  if (state.read().picture === null) return;
  if (history.state?.opened) history.back();
  else go({ picture: null }, { replace: true });
}

/** More ("like") or less ("unlike") of a picture becomes a part of the query. */
async function like(list, id) {
  const asked = state.read();
  const [likes, unlikes] = [asked.like, asked.unlike].map((ids) => ids.filter((i) => i !== id));
  (list === "like" ? likes : unlikes).push(id);
  await go({ like: likes, unlike: unlikes, picture: null, top: state.FIRST });
  window.scrollTo(0, 0);
  gallery.focus(hits[0]?.id);
}

function removePart(list, value) {
  const left = state.read()[list].filter((other) => other !== value);
  go({ [list]: left, top: state.FIRST });
  at("query").focus();
}

/** Pictures from outside become parts of the query. */
async function take(files) {
  if (!status?.uploads) return;
  busy(true);
  try {
    const sent = [];
    for (const file of files) sent.push((await api.upload(file)).upload);
    await go({ uploads: [...state.read().uploads, ...sent], picture: null, top: state.FIRST });
  } catch (error) {
    fail(error);
  } finally {
    busy(false);
  }
}

function busy(on) {
  document.body.classList.toggle("busy", on);
  at("main").ariaBusy = String(on);
}

function problem(text, { again = false } = {}) {
  at("problem").hidden = text === null;
  at("problem").querySelector("p").textContent = text ?? "";
  at("again").hidden = !again;
}

function fail(error) {
  if (error instanceof api.TokenNeeded) return askForToken();
  if (!(error instanceof api.Refused || error instanceof api.Unreachable)) throw error;
  problem(error.message, { again: error instanceof api.Unreachable });
}

/** The message would lie behind the dialog. */
async function closeAndFail(error) {
  await go({ picture: null }, { replace: true });
  fail(error);
}

function askForToken() {
  viewer.close();
  problem(null);
  for (const id of ["welcome", "results", "search", "empty"]) at(id).hidden = true;
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
  at("search").hidden = false;
  await start();
}

async function start() {
  try {
    await loadStatus();
  } catch (error) {
    return fail(error);
  }
  problem(null);
  await apply();
  if (state.read().picture === null) at("query").focus();
}

async function loadStatus() {
  status = await api.status();
  at("about").textContent = `${counted(status.pictures)} in ${status.folder}`;
  at("empty").hidden = status.pictures > 0;
  for (const id of ["choose", "choose-example"]) at(id).hidden = !status.uploads;
  controls.offer(status);
}

function submit(event) {
  event.preventDefault();
  searched = null; // the same query again: the index may have changed
  go({ query: at("query").value.trim(), picture: null, top: state.FIRST });
}

async function more() {
  const known = hits.length;
  await go({ top: state.read().top + state.FIRST }, { replace: true });
  gallery.focus(hits[known]?.id);
}

function keys(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || document.querySelector("dialog[open]")) {
    return;
  }
  if (event.target === at("query") && event.key === "ArrowDown" && hits.length) {
    event.preventDefault();
    return gallery.focus(hits[0].id);
  }
  if (event.target.closest("input:not([type=range]), select")) return;
  const id = gallery.focused();
  const act = {
    "/": () => at("query").select(),
    "?": () => at("help").showModal(),
    m: () => id !== null && like("like", id),
    l: () => id !== null && like("unlike", id),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

function listen() {
  at("search").addEventListener("submit", submit);
  at("token-form").addEventListener("submit", giveToken);
  at("again").addEventListener("click", () => go({}, { replace: true }));
  at("dismiss").addEventListener("click", () => problem(null));
  at("more").addEventListener("click", more);
  at("nothing-action").addEventListener("click", () => go(hits.length ? { cut: null } : NO_FILTERS));
  at("help-open").addEventListener("click", () => at("help").showModal());
  at("help-close").addEventListener("click", () => at("help").close());
  for (const example of document.querySelectorAll("[data-query]")) {
    example.addEventListener("click", () => go({ query: example.dataset.query }));
  }
  document.addEventListener("keydown", keys);
  window.addEventListener("popstate", () => status && apply());
  document.addEventListener("visibilitychange", () => {
    if (status && !document.hidden) loadStatus().catch(fail); // the index may have grown
  });
  pictures.listen(take);
  gallery.listen({
    open: (id) => go({ picture: id }),
    leave: () => at("query").focus(),
  });
  viewer.listen({ step, like, closed });
  controls.listen({
    filter: (changes) => go({ ...changes, top: state.FIRST }),
    cutting: () => showCut(controls.cut()),
    settle: () => go({ cut: controls.cut() }, { replace: true }),
  });
}

listen();
start();
