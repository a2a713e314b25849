// A job's events: fetched from the newest to the oldest, cached, and shown page by page.

import { get } from "./api.js";
import { moment } from "./format.js";
import { el, row, say, table } from "./nodes.js";

const PAGE = 100;
const SHOWN = 50;

/** The events of a job that were fetched so far, newest first, without gaps. */
export class Events {
  constructor(jobId, signal) {
    this.path = `/v1/fine_tuning/jobs/${encodeURIComponent(jobId)}/events?limit=${PAGE}`;
    this.signal = signal;
    this.all = [];
    this.hasOlder = false;
    this.isReading = false;
  }

  /** Fetch the events since the last call. Returns them, newest first. */
  async refresh() {
    const newest = this.all[0]?.id;
    const fresh = [];
    let after = "";
    while (true) {
      const page = await get(this.path + after, this.signal);
      const known = page.data.findIndex((event) => event.id === newest);
      fresh.push(...(known < 0 ? page.data : page.data.slice(0, known)));
      if (newest === undefined) this.hasOlder = page.has_more;
      if (newest === undefined || known >= 0 || !page.has_more) break;
      after = `&after=${page.last_id}`;
    }
    this.all.unshift(...fresh);
    return fresh;
  }

  /** Fetch the next page of older events. Returns it. */
  async older() {
    if (!this.hasOlder || this.isReading) return [];
    this.isReading = true;
    try {
      const page = await get(`${this.path}&after=${this.all.at(-1).id}`, this.signal);
      this.all.push(...page.data);
      this.hasOlder = page.has_more;
      return page.data;
    } finally {
      this.isReading = false;
    }
  }
}

/** Create the event list: {node, update}. Step events would flood the list of a long run, so they are hidden by default. */
export function eventList(events, handled) {
  const steps = el("input", { type: "checkbox", id: "with-steps" });
  const body = el("tbody");
  const list = table("Events, newest first", [{ name: "Time" }, { name: "Event" }], body);
  const more = el("button", { type: "button", onclick: handled(older) }, "Show older events");
  const none = el("p", { class: "none" }, "No events yet.");
  const rows = new Map();
  let limit = SHOWN;
  steps.addEventListener("change", () => {
    limit = SHOWN;
    update();
  });

  async function older() {
    limit += SHOWN;
    while (matching().length < limit && (await events.older()).length);
    update();
  }

  function matching() {
    return steps.checked ? events.all : events.all.filter((event) => event.type !== "metrics");
  }

  function update() {
    const matches = matching();
    const shown = matches.slice(0, limit);
    const ids = new Set(shown.map((event) => event.id));
    for (const [id, node] of rows) {
      if (ids.has(id)) continue;
      node.remove();
      rows.delete(id);
    }
    shown.forEach((event, index) => {
      if (!rows.has(event.id)) rows.set(event.id, eventRow(event));
      if (body.children[index] !== rows.get(event.id)) body.insertBefore(rows.get(event.id), body.children[index] ?? null);
    });
    more.hidden = matches.length <= limit && !events.hasOlder;
    list.hidden = shown.length === 0;
    none.hidden = shown.length > 0;
    say(none, steps.checked ? "No events yet." : "No events other than steps.");
  }

  const choice = el("p", {}, steps, " ", el("label", { for: "with-steps" }, "Show step events"));
  return { node: el("div", {}, choice, none, list, el("p", { class: "actions" }, more)), update };
}

function eventRow(event) {
  const tone = { warn: "warn", error: "bad" }[event.level];
  const level = tone ? el("span", { class: `state ${tone}` }, event.level === "warn" ? "warning" : "error") : null;
  return row([{ value: moment(event.created_at), class: "nowrap" },
    { value: el("span", {}, level, level ? " " : null, event.message), class: "wrap" }]);
}
