// What is asked for, kept in the address behind '#': Back and bookmarks work, and a browser
// never sends that part of an address anywhere.

export const FIRST = 60; // pictures of a search, and how many more each "Show more" adds
export const MOST = 1000; // the server's limit

export const FILTERS = ["after", "before", "camera", "folder"];

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
    uploads: list("uploads").filter((hex) => /^[0-9a-f]+$/.test(hex)),
    after: date("after"),
    before: date("before"),
    camera: given.get("camera") || null,
    folder: given.get("folder") || null,
    top: whole("top") || FIRST,
    cut: Number.isFinite(cut) ? cut : null, // scores below it are hidden
    picture: whole("picture"), // the open one's id
  };
}

function address(state) {
  const fields = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    const text = Array.isArray(value) ? value.join(",") : (value ?? "");
    if (text === "" || (name === "top" && value === FIRST)) continue;
    fields.set(name === "query" ? "q" : name, text);
  }
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
  const { query, like, unlike, uploads } = state;
  return { query, like, unlike, uploads };
}

/** The fields of a search: the query, and which pictures may answer. */
export function asSearch(state) {
  const { after, before, camera, folder, top } = state;
  return { ...asQuery(state), after, before, camera, folder, top, min_score: null };
}

export const asks = (state) =>
  Boolean(
    state.query || state.like.length || state.unlike.length || state.uploads.length,
  );
