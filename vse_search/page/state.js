// What is asked for, kept in the address behind '#': Back and bookmarks work, and a browser
// never sends that part of an address anywhere.

export const FIRST = 60; // photos that are shown, and how many more each "Show more" adds
export const MOST = 1000; // of one answer: the server's limit
export const ALL = -1; // a cut-off that hides nothing

export const FILTERS = ["after", "before", "camera", "folder"];
export const NO_FILTERS = Object.fromEntries(FILTERS.map((name) => [name, null]));
const ORDERS = ["newest", "oldest", "name"];

export function read(hash = location.hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const list = (name) => (given.get(name) ?? "").split(",").filter(Boolean);
  const ids = (name) => list(name).map(Number).filter(Number.isSafeInteger);
  const date = (name) => given.get(name)?.match(/^\d{4}-\d\d-\d\d$/)?.[0] ?? null;
  const whole = (name) => (/^\d+$/.test(given.get(name)) ? Number(given.get(name)) : null);
  const cut = Number.parseFloat(given.get("cut"));
  return {
    query: given.get("q") ?? "",
    like: ids("like"),
    unlike: ids("unlike"),
    uploads: [...given.getAll("upload"), ...list("uploads")].map(upload).filter(Boolean),
    after: date("after"),
    before: date("before"),
    camera: given.get("camera") || null,
    folder: given.get("folder") || null,
    order: ORDERS.find((order) => order === given.get("order")) ?? null,
    top: whole("top") || FIRST,
    cut: Number.isFinite(cut) ? cut : null, // scores below it are hidden; null: the model's
    picture: whole("picture"), // the open one's id
  };
}

/** 'HEX/NAME' or, in bookmarks of before, 'HEX'. */
function upload(text) {
  const [, id, name] = text.match(/^([0-9a-f]{32})(?:\/(.*))?$/s) ?? [];
  return id && { id, name: name || "your photo" };
}

function address(state) {
  const fields = new URLSearchParams();
  const { uploads, ...others } = state;
  for (const [name, value] of Object.entries(others)) {
    const text = Array.isArray(value) ? value.join(",") : (value ?? "");
    if (text === "" || (name === "top" && value === FIRST)) continue;
    fields.set(name === "query" ? "q" : name, text);
  }
  for (const { id, name } of uploads) fields.append("upload", `${id}/${name}`);
  return fields.size ? `#${fields}` : location.pathname + location.search;
}

/** Changes fields of the state: as a step that Back undoes, unless `replace`. */
export function write(changes, { replace = false } = {}) {
  const next = address({ ...read(), ...changes });
  if (replace || next === location.hash) history.replaceState(history.state, "", next);
  else history.pushState({ opened: changes.picture != null }, "", next);
}

/** The fields of the API's query. */
export function asQuery(state) {
  const { query, like, unlike } = state;
  return { query, like, unlike, uploads: state.uploads.map(({ id }) => id) };
}

/** The fields of a search: the query or an order, and which photos may answer. */
export function asSearch(state) {
  const { after, before, camera, folder } = state;
  const order = isBrowsing(state) ? state.order : null;
  return { ...asQuery(state), after, before, camera, folder, order };
}

/** Whether something is looked for. */
export const asks = (state) =>
  Boolean(state.query || state.like.length || state.unlike.length || state.uploads.length);

export const isFiltered = (state) => FILTERS.some((name) => state[name]);

/** Whether photos are shown without being looked for. */
export const isBrowsing = (state) => !asks(state) && Boolean(state.order || isFiltered(state));
