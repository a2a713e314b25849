// Client of the server's API. The key is kept in the tab's session storage and sent only in request headers.

const KEY = "tunesmith.key";
const TIMEOUT_MS = 60_000;

/** An error returned by the API, or a request without a response (status 0). */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }

  /** The server is unreachable, or a proxy in front of it reports so. */
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

/** body: sent as JSON. once: an Idempotency-Key, so that sending the same request twice has no further effect. */
export function post(path, body, { signal, once } = {}) {
  return json("POST", path, body, signal, once ? { "Idempotency-Key": once } : {});
}

export async function download(path) {
  return (await request("GET", path, undefined, undefined)).blob();
}

export async function text(path, signal) {
  return (await request("GET", path, undefined, signal)).text();
}

/** Yield the chunks of a streamed response. */
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
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield chunkOf(data);
      }
      if (done) throw new ApiError("The response was interrupted: the connection to the server was lost.");
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

/** Upload a file; fetch does not report upload progress. progress: called with a fraction from 0 to 1. */
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
      else reject(apiError(sent.status, sent.responseText, sent.getResponseHeader("Retry-After")));
    };
    sent.onerror = () => reject(lost());
    sent.onabort = () => reject(new DOMException("The upload was cancelled", "AbortError"));
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
  const timeouts = bounded ? [AbortSignal.timeout(TIMEOUT_MS)] : [];
  sent.signal = AbortSignal.any([...(signal ? [signal] : []), ...timeouts]);
  const response = await connected(() => fetch(path, sent), signal);
  if (response.ok) return response;
  const content = await connected(() => response.text(), signal);
  throw apiError(response.status, content, response.headers.get("Retry-After"));
}

async function connected(send, signal) {
  try {
    return await send();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw lost();
  }
}

function lost() {
  return new ApiError("Cannot reach the server.");
}

function apiError(status, content, wait) {
  let error = {};
  try {
    error = JSON.parse(content).error ?? {};
  } catch {
    // an error page of a proxy, not a response of the API
  }
  return new ApiError(error.message ?? `The server returned HTTP status ${status}.`, {
    status,
    code: error.code ?? null,
    param: error.param ?? null,
    retryAfter: wait === null ? null : Number(wait),
  });
}
