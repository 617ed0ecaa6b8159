// Numbers and names as people read them.

const MINUS = "\u2212";

/** A score or a part of one: a true minus sign, `digits` after the point. */
export function number(value, digits = 2) {
  return value.toFixed(digits).replace("-", MINUS).replace(/^\u2212(0(\.0*)?)$/, "$1");
}

/** A part of a sum: always with its sign. */
export function signed(value, digits = 3) {
  const text = number(value, digits);
  return text.startsWith(MINUS) ? text : `+${text}`;
}

export const whole = (count) => count.toLocaleString("en");

export const photos = (count) => `${whole(count)} ${count === 1 ? "photo" : "photos"}`;

/** 'a, b and c' */
export const listed = (words) => new Intl.ListFormat("en").format(words);

export const fileName = (path) => path.slice(path.lastIndexOf("/") + 1);

/** Bytes in kB or MB. */
export function size(bytes) {
  if (bytes < 1e6) return `${whole(Math.max(1, Math.round(bytes / 1e3)))} kB`;
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/** '2021-06-03T18:14:07' → '3 June 2021, 18:14': the camera's own clock, no time zone. */
export function moment(taken) {
  const time = new Date(`${taken}Z`);
  if (Number.isNaN(time.valueOf())) return taken;
  const date = { day: "numeric", month: "long", year: "numeric", timeZone: "UTC" };
  return `${time.toLocaleDateString("en-GB", date)}, ${taken.slice(11, 16)}`;
}

/** '2021-06-03T18:14:07' → 'June 2021' */
export function month(taken) {
  const time = new Date(`${taken.slice(0, 7)}-01T00:00:00Z`);
  if (Number.isNaN(time.valueOf())) return taken;
  return time.toLocaleDateString("en-GB", { month: "long", year: "numeric", timeZone: "UTC" });
}

// By config.data.name of the training.
const LEARNED_FROM = {
  coco: "photos of everyday life (MS-COCO)",
  f30k: "photos of people and what they do (Flickr30K)",
  openmoji: "drawings (OpenMoji), not from photos",
  webli: "images of the Web with texts in 109 languages (WebLI)",
};
const NAMES = new Intl.DisplayNames("en", { type: "language" });

/** What a model knows; of the demo's, how to have one that knows photographs. */
export function trainedOn({ model, trained_on: name }) {
  if (!name) return `What the model “${model}” has learned from is not known.`;
  const instead = name === "openmoji" ? " For photographs: make photos PICTURES=FOLDER." : "";
  return `The model “${model}” has learned from ${LEARNED_FROM[name] ?? `the data “${name}”`}.${instead}`;
}

/** In which languages one can ask, as far as the model's card says, in a sentence or "". */
export function understands({ languages }) {
  const named = languages.map(languageName);
  return named.length ? ` It was trained in ${listed(named)}.` : "";
}

function languageName(code) {
  try {
    return NAMES.of(code);
  } catch {
    return "others"; // "multilingual" is no code
  }
}
