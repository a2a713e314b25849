// Whether the server answers, told once when it stops and once when it is back; and asking again and again.

import { ApiError, get } from "./api.js";

const SLOWEST_MS = 15_000;
const HIDDEN_FACTOR = 10;
const LOST_MS = 2_000;
const line = new EventTarget();
const listeners = { lost: () => {}, back: () => {}, needsKey: () => {} };
let isLost = false;

export function onConnection(lost, back, needsKey) {
  Object.assign(listeners, { lost, back, needsKey });
}

/** Does `ask`, and tells whether the server answered. */
export async function told(ask) {
  try {
    const answer = await ask();
    noteAnswer();
    return answer;
  } catch (error) {
    if (error instanceof ApiError) {
      if (error.isConnection) noteLoss();
      else noteAnswer();
      if (error.needsKey) listeners.needsKey();
    }
    throw error;
  }
}

/**
 * Calls `ask` until the signal ends it: `ask` returns after how many milliseconds it wants to be called again, or null
 * for never. Ten times slower where the tab is hidden, and at once when it is shown; slower and slower where the server
 * does not answer, and as slow as it asks for where it is too much.
 */
export async function poll(ask, signal, failed) {
  let failures = 0;
  while (!signal.aborted) {
    let wait;
    try {
      wait = await told(ask);
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
      line.removeEventListener("back", end);
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
    line.addEventListener("back", end);
    signal.addEventListener("abort", end);
  });
}

function noteLoss() {
  if (isLost) return;
  isLost = true;
  listeners.lost();
  knock();
}

/** Asks whether the server is back, also where no view asks it for anything. */
async function knock() {
  while (isLost) {
    await new Promise((resolve) => setTimeout(resolve, LOST_MS));
    await get("/healthz").then(noteAnswer, () => {});
  }
}

function noteAnswer() {
  if (!isLost) return;
  isLost = false;
  listeners.back();
  line.dispatchEvent(new Event("back"));
}
