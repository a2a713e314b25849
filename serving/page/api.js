// The server's API: one function a kind of request. The key stays in this tab's session and in the header of requests.

const KEY = "tunesmith.key";
const WAITS_MS = 60_000;

/** What the API refused, or what kept a request from its answer (status 0). */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }

  /** The server could not be reached, or a proxy before it had no server. */
  get isConnection() {
    return this.status === 0 || (this.status >= 502 && this.status <= 504 && this.code === null);
  }

  get needsKey() {
    return this.status === 401;
  }
}

export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

export function get(path, signal) {
  return json("GET", path, undefined, signal);
}

export function remove(path) {
  return json("DELETE", path);
}

/** body: sent as JSON. once: an Idempotency-Key, so that a second send of the same does nothing more. */
export function post(path, body, { signal, once } = {}) {
  return json("POST", path, body, signal, once ? { "Idempotency-Key": once } : {});
}

export async function download(path) {
  return (await request("GET", path, undefined, undefined)).blob();
}

export async function text(path, signal) {
  return (await request("GET", path, undefined, signal)).text();
}

/** The chunks of a streamed answer as they come. */
export async function* stream(path, body, signal) {
  const response = await request("POST", path, { ...body, stream: true }, signal, {}, false);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await connected(() => reader.read(), signal);
      const lines = (rest + (value ?? "")).split("\n");
      rest = done ? "" : lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const told = line.slice(5).trim();
        if (told === "[DONE]") return;
        yield chunkOf(told);
      }
      if (done) throw new ApiError("The answer broke off: the connection to the server was lost.");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function chunkOf(text) {
  const chunk = JSON.parse(text);
  if (chunk.error) throw new ApiError(chunk.error.message, { status: 500, code: chunk.error.code ?? "stream" });
  return chunk;
}

/** Sends a file; fetch tells nothing of its progress. progress(share from 0 to 1) */
export function upload(file, progress, signal) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("purpose", "fine-tune");
    form.append("file", file);
    const sent = new XMLHttpRequest();
    sent.open("POST", "/v1/files");
    if (key()) sent.setRequestHeader("Authorization", `Bearer ${key()}`);
    sent.upload.onprogress = (event) => progress(event.lengthComputable ? event.loaded / event.total : 0);
    sent.onload = () => {
      if (sent.status < 300) resolve(JSON.parse(sent.responseText));
      else reject(refusal(sent.status, sent.responseText, sent.getResponseHeader("Retry-After")));
    };
    sent.onerror = () => reject(lost());
    sent.onabort = () => reject(new DOMException("The upload was stopped", "AbortError"));
    signal?.addEventListener("abort", () => sent.abort());
    sent.send(form);
  });
}

export function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function json(method, path, body, signal, headers = {}) {
  return (await request(method, path, body, signal, headers)).json();
}

async function request(method, path, body, signal, headers = {}, bounded = true) {
  const sent = { method, headers: { ...headers }, cache: "no-store", credentials: "omit", redirect: "error" };
  if (key()) sent.headers.Authorization = `Bearer ${key()}`;
  if (body !== undefined) {
    sent.headers["Content-Type"] = "application/json";
    sent.body = JSON.stringify(body);
  }
  const late = bounded ? [AbortSignal.timeout(WAITS_MS)] : [];
  sent.signal = AbortSignal.any([...(signal ? [signal] : []), ...late]);
  const response = await connected(() => fetch(path, sent), signal);
  if (response.ok) return response;
  const said = await connected(() => response.text(), signal);
  throw refusal(response.status, said, response.headers.get("Retry-After"));
}

async function connected(ask, signal) {
  try {
    return await ask();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw lost();
  }
}

function lost() {
  return new ApiError("The server does not answer.");
}

function refusal(status, said, wait) {
  let error = {};
  try {
    error = JSON.parse(said).error ?? {};
  } catch {
    // a proxy's page, not the API's answer
  }
  return new ApiError(error.message ?? `The server answered with the code ${status}.`, {
    status,
    code: error.code ?? null,
    param: error.param ?? null,
    retryAfter: wait === null ? null : Number(wait),
  });
}
