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

export const pictures = (count) =>
  `${whole(count)} ${count === 1 ? "picture" : "pictures"}`;

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
