// Entry point: routes the URL hash to a view; navigation, connection banner and announcements.

import { key, setKey } from "./api.js";
import { onConnection } from "./connection.js";
import { filesView } from "./files.js";
import { jobView } from "./job.js";
import { jobsView } from "./jobs.js";
import { keyView } from "./key.js";
import { newJobView } from "./new-job.js";
import { el, fill, say } from "./nodes.js";
import { playgroundView } from "./playground.js";

const VIEWS = [
  ["#/jobs", "Jobs"],
  ["#/new", "New job"],
  ["#/files", "Files"],
  ["#/playground", "Playground"],
  ["#/key", "API key"],
];
const main = document.getElementById("main");
const connection = document.getElementById("connection");
let shown = null;
let requested = "";

/** The view for a URL hash: [function, arguments]. */
function viewOf(hash) {
  const [path, query = ""] = hash.split("?", 2);
  const [, view = "", id] = path.split("/").map(decoded);
  const params = new URLSearchParams(query);
  if (view === "jobs" && id) return [jobView, { id }];
  if (view === "new") return [newJobView, { file: params.get("file"), model: params.get("model") }];
  if (view === "files") return [filesView, {}];
  if (view === "playground") return [playgroundView, { model: params.get("model") }];
  if (view === "key") return [keyView, { accepted: keyAccepted }];
  return [jobsView, {}];
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** A view receives its container, a signal that is aborted when it closes, and `announce` for screen readers. */
function show() {
  const isFirst = shown === null;
  shown?.abort();
  shown = new AbortController();
  const [view, options] = viewOf(location.hash);
  const heading = el("h1", { tabindex: "-1" });
  fill(main, heading);
  view({ ...options, main, heading, signal: shown.signal, announce });
  document.title = `${heading.textContent} – Tunesmith`;
  mark();
  window.scrollTo(0, 0);
  if (!isFirst) heading.focus({ preventScroll: true });
}

function mark() {
  const here = VIEWS.find(([hash]) => location.hash.split("?")[0].startsWith(hash))?.[0] ?? "#/jobs";
  fill(document.getElementById("views"), VIEWS.map(([hash, name]) =>
    el("li", {}, el("a", { href: hash, "aria-current": hash === here ? "page" : null }, name))));
}

function announce(text) {
  say(document.getElementById("announcement"), text);
}

function needsKey() {
  if (location.hash.startsWith("#/key")) return;
  requested = location.hash;
  announce(key() ? "The API key was not accepted." : "This server requires an API key.");
  location.hash = "#/key";
}

function keyAccepted(value) {
  setKey(value);
  location.hash = requested || "#/jobs";
  requested = "";
}

onConnection(
  () => {
    say(connection, "Cannot reach the server. The data shown may be out of date. Retrying…");
    connection.hidden = false;
  },
  () => {
    connection.hidden = true;
    announce("Connection to the server restored.");
  },
  needsKey,
);
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the URL hash selects the view
  main.focus();
});
window.addEventListener("hashchange", show);
show();
