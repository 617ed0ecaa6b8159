// The server's JSON API. Addresses are relative, so that the page also works below a prefix.

/** The server asks for its token. */
export class TokenNeeded extends Error {}

/** What the server refused, with its reason for people. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The server did not answer. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer. Is it still running?");
  }
}

async function call(address, options = {}) {
  let response;
  try {
    response = await fetch(address, { ...options, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable();
  }
  if (response.status === 401) throw new TokenNeeded(await reason(response));
  if (!response.ok) throw new Refused(await reason(response), response.status);
  return response.status === 204 ? null : response.json();
}

async function reason(response) {
  const answer = await response.json().catch(() => null);
  return answer?.error ?? `The server answered ${response.status}.`;
}

const post = (address, fields, signal) =>
  call(address, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(fields),
    signal,
  });

export const status = () => call("api/status");
export const search = (fields, signal) => post("api/search", fields, signal);
export const explain = (fields, signal) => post("api/explain", fields, signal);
export const data = (id, signal) => call(`api/data/${id}`, { signal });
export const giveToken = (token) => post("api/token", { token });
export const upload = (file) => call("api/upload", { method: "POST", body: file });
export const folder = () => call("api/folder");

/** Whether the server still has an upload. */
export const keeps = async (hex) => (await fetch(uploadOf(hex))).ok;

export const thumbnailOf = (id) => `api/thumbnail/${id}`;
export const photoOf = (id) => `api/picture/${id}`;
export const fullSizeOf = (id) => `api/picture/${id}?full=1`;
export const fileOf = (id) => `api/file/${id}`;
export const uploadOf = (hex) => `api/upload/${hex}`;
