// A job's events: read from the newest back, kept, and listed a part at a time.

import { get } from "./api.js";
import { el, fill, row, say, table } from "./nodes.js";
import { moment } from "./words.js";

const PAGE = 100;
const SHOWN = 50;

/** What was read of a job's events so far, the newest first, without gaps. */
export class Events {
  constructor(jobId, signal) {
    this.path = `/v1/fine_tuning/jobs/${encodeURIComponent(jobId)}/events?limit=${PAGE}`;
    this.signal = signal;
    this.all = [];
    this.hasOlder = false;
    this.isReading = false;
  }

  /** Reads what came since; returns it, the newest first. */
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

  /** Reads one page further back; returns it. */
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

/** The list: {node, update}. Steps fill the log of a long run, so they are left out unless asked for. */
export function eventList(events, handled) {
  const steps = el("input", { type: "checkbox", id: "with-steps" });
  const body = el("tbody");
  const list = table("Events, the newest first", [{ name: "Time" }, { name: "Event" }], body);
  const more = el("button", { type: "button", onclick: handled(older) }, "Show older events");
  const none = el("p", { class: "none" }, "There is none yet.");
  const rows = new Map();
  let wanted = SHOWN;
  steps.addEventListener("change", () => {
    wanted = SHOWN;
    update();
  });

  async function older() {
    wanted += SHOWN;
    while (matching().length < wanted && (await events.older()).length);
    update();
  }

  function matching() {
    return steps.checked ? events.all : events.all.filter((event) => event.type !== "metrics");
  }

  function update() {
    const found = matching();
    const shown = found.slice(0, wanted);
    const ids = new Set(shown.map((event) => event.id));
    for (const [id, node] of rows) {
      if (ids.has(id)) continue;
      node.remove();
      rows.delete(id);
    }
    shown.forEach((event, place) => {
      if (!rows.has(event.id)) rows.set(event.id, eventRow(event));
      if (body.children[place] !== rows.get(event.id)) body.insertBefore(rows.get(event.id), body.children[place] ?? null);
    });
    more.hidden = found.length <= wanted && !events.hasOlder;
    list.hidden = shown.length === 0;
    none.hidden = shown.length > 0;
    say(none, steps.checked ? "There is none yet." : "There is none yet, beside steps.");
  }

  const choice = el("p", {}, steps, " ", el("label", { for: "with-steps" }, "Show every step too"));
  return { node: el("div", {}, choice, none, list, el("p", { class: "actions" }, more)), update };
}

function eventRow(event) {
  const tone = { warn: "warn", error: "bad" }[event.level];
  const level = tone ? el("span", { class: `state ${tone}` }, event.level === "warn" ? "warning" : "error") : null;
  return row([{ value: moment(event.created_at), class: "nowrap" },
    { value: el("span", {}, level, level ? " " : null, event.message), class: "wrap" }]);
}
