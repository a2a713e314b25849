// Connection status of the server, and polling. Listeners are called once when the connection is lost and once when it is restored.

import { ApiError, get } from "./api.js";

const SLOWEST_MS = 15_000;
const HIDDEN_FACTOR = 10;
const PROBE_MS = 2_000;
const connectivity = new EventTarget();
const listeners = { lost: () => {}, restored: () => {}, needsKey: () => {} };
let isLost = false;

export function onConnection(lost, restored, needsKey) {
  Object.assign(listeners, { lost, restored, needsKey });
}

/** Call `request`, and record whether the server responded. */
export async function tracked(request) {
  try {
    const response = await request();
    markRestored();
    return response;
  } catch (error) {
    if (error instanceof ApiError) {
      if (error.isConnection) markLost();
      else markRestored();
      if (error.needsKey) listeners.needsKey();
    }
    throw error;
  }
}

/**
 * Call `request` repeatedly until the signal is aborted. `request` returns the delay until the next call in
 * milliseconds, or null to stop. A hidden tab polls ten times less often, and at once when it becomes visible. Retries
 * back off exponentially, or by the server's Retry-After.
 */
export async function poll(request, signal, failed) {
  let failures = 0;
  while (!signal.aborted) {
    let wait;
    try {
      wait = await tracked(request);
      failures = 0;
      if (wait === null) return;
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      if (!error.isConnection && error.status !== 429 && error.status < 500) {
        failed(error);
        return;
      }
      failures += 1;
      wait = error.retryAfter ? error.retryAfter * 1000 : Math.min(SLOWEST_MS, 500 * 2 ** failures);
    }
    await pause(wait, signal);
  }
}

function pause(wait, signal) {
  return new Promise((resolve) => {
    let timer = 0;
    const end = () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", changed);
      connectivity.removeEventListener("restored", end);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const changed = () => {
      clearTimeout(timer);
      if (document.hidden) timer = setTimeout(end, wait * HIDDEN_FACTOR);
      else end();
    };
    timer = setTimeout(end, document.hidden ? wait * HIDDEN_FACTOR : wait);
    document.addEventListener("visibilitychange", changed);
    connectivity.addEventListener("restored", end);
    signal.addEventListener("abort", end);
  });
}

function markLost() {
  if (isLost) return;
  isLost = true;
  listeners.lost();
  probe();
}

/** Probe the server until it responds, even if no view is polling it. */
async function probe() {
  while (isLost) {
    await new Promise((resolve) => setTimeout(resolve, PROBE_MS));
    await get("/healthz").then(markRestored, () => {});
  }
}

function markRestored() {
  if (!isLost) return;
  isLost = false;
  listeners.restored();
  connectivity.dispatchEvent(new Event("restored"));
}
