// The page: a view for each address behind the #, and what stands around them.

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
let wanted = "";

/** The view of an address: [function, its arguments]. */
function viewOf(hash) {
  const [path, query = ""] = hash.split("?", 2);
  const [, place = "", id] = path.split("/").map(decoded);
  const given = new URLSearchParams(query);
  if (place === "jobs" && id) return [jobView, { id }];
  if (place === "new") return [newJobView, { file: given.get("file"), model: given.get("model") }];
  if (place === "files") return [filesView, {}];
  if (place === "playground") return [playgroundView, { model: given.get("model") }];
  if (place === "key") return [keyView, { accepted: keyAccepted }];
  return [jobsView, {}];
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** A view gets its place, a signal that ends it, and `announce` for what a screen reader shall say. */
function show() {
  const isFirst = shown === null;
  shown?.abort();
  shown = new AbortController();
  const [view, given] = viewOf(location.hash);
  const heading = el("h1", { tabindex: "-1" });
  fill(main, heading);
  view({ ...given, main, heading, signal: shown.signal, announce });
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
  say(document.getElementById("said"), text);
}

function needsKey() {
  if (location.hash.startsWith("#/key")) return;
  wanted = location.hash;
  announce(key() ? "This key is not accepted." : "This server needs an API key.");
  location.hash = "#/key";
}

function keyAccepted(value) {
  setKey(value);
  location.hash = wanted || "#/jobs";
  wanted = "";
}

onConnection(
  () => {
    say(connection, "The server does not answer. What you see may be old; this page keeps trying.");
    connection.hidden = false;
  },
  () => {
    connection.hidden = true;
    announce("The server answers again.");
  },
  needsKey,
);
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address behind the # names the view
  main.focus();
});
window.addEventListener("hashchange", show);
show();
