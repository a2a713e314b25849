// All jobs, newest first, with their progress.

import { get } from "./api.js";
import { poll, tracked } from "./connection.js";
import { clicked, errorBox } from "./form.js";
import { ACTIVE, count, duration, moment, statusText, toneOf } from "./format.js";
import { el, fill, row, say, table } from "./nodes.js";

const PAGE = 25;
const BUSY_MS = 1_500;
const IDLE_MS = 5_000;

export function jobsView({ main, heading, signal, announce }) {
  fill(heading, "Jobs");
  const rows = new Map(); // by job id, in display order
  const body = el("tbody");
  const columns = ["Job", "Status", "Progress", "Model", "Fine-tuned model", "Created"].map((name) => ({ name }));
  const list = table("Fine-tuning jobs, newest first", columns, body);
  const none = el("p", { class: "none" }, "Loading jobs…");
  const box = errorBox();
  const more = el("button", { type: "button", onclick: clicked(older, box), hidden: true }, "Show older jobs");
  list.hidden = true;
  const start = el("a", { class: "button first", href: "#/new" }, "New job");
  main.append(el("p", { class: "actions" }, start), box.node, none, list, el("p", { class: "actions" }, more));
  let last = null;

  poll(async () => {
    const page = await newest();
    const fresh = page.data.filter((job) => !rows.has(job.id)).reverse();
    for (const job of page.data) keep(job);
    for (const job of fresh) body.prepend(rows.get(job.id).node);
    if (last === null && page.data.length) last = page.data.at(-1).id;
    if (rows.size <= page.data.length) more.hidden = !page.has_more;
    list.hidden = rows.size === 0;
    none.hidden = rows.size > 0;
    say(none, "No jobs yet. Upload a data file, then create a job from it.");
    const onPage = new Set(page.data.map((job) => job.id));
    await Promise.all([...rows.values()].map((one) => refresh(one, onPage)));
    return [...rows.values()].some((one) => ACTIVE.includes(one.job.status)) ? BUSY_MS : IDLE_MS;
  }, signal, (error) => {
    fill(box.node, error.message);
    box.node.hidden = false;
    none.hidden = true;
  });

  /** Fetch the first page, and further pages until one contains a known job, so that no new job is missed. */
  async function newest() {
    const page = await get(`/v1/fine_tuning/jobs?limit=${PAGE}`, signal);
    while (rows.size && page.has_more && !page.data.some((job) => rows.has(job.id))) {
      const next = await get(`/v1/fine_tuning/jobs?limit=100&after=${page.data.at(-1).id}`, signal);
      page.data.push(...next.data);
      page.has_more = next.has_more;
    }
    return page;
  }

  /** Update an active job that is not on the first page, and the progress of its run. */
  async function refresh(one, onPage) {
    if (!ACTIVE.includes(one.job.status)) return;
    if (!onPage.has(one.job.id)) keep(await get(`/v1/fine_tuning/jobs/${one.job.id}`, signal));
    if (["running", "pausing", "paused"].includes(one.job.status)) {
      const run = await get(`/v1/fine_tuning/jobs/${one.job.id}/run`, signal);
      showProgress(one, run.status);
    }
  }

  async function older() {
    const page = await tracked(() => get(`/v1/fine_tuning/jobs?limit=${PAGE}&after=${last}`, signal));
    const first = page.data.find((job) => !rows.has(job.id));
    for (const job of page.data) {
      if (!rows.has(job.id)) body.append(keep(job).node);
    }
    last = page.data.at(-1)?.id ?? last;
    more.hidden = !page.has_more;
    announce(`Showing ${count(rows.size)} jobs.`);
    if (more.hidden && first) rows.get(first.id).link.focus();
  }

  /** Create or update the row of a job. */
  function keep(job) {
    const known = rows.get(job.id);
    const one = known ?? jobRow(job);
    if (known && known.job.status !== job.status) announce(`${name(job)}: ${statusText(job.status)}.`);
    one.job = job;
    rows.set(job.id, one);
    say(one.state, statusText(job.status));
    one.state.className = `state ${toneOf(job.status)}`;
    say(one.tuned, job.fine_tuned_model ?? "–");
    if (!["running", "pausing", "paused"].includes(job.status)) {
      say(one.progress, job.status === "succeeded" ? `took ${duration(job.finished_at - job.created_at)}` : "–");
      one.bar.hidden = true;
    }
    return one;
  }
}

function name(job) {
  return job.user_provided_suffix ? `${job.user_provided_suffix} (${job.id})` : job.id;
}

function jobRow(job) {
  const link = el("a", { href: `#/jobs/${encodeURIComponent(job.id)}` }, name(job));
  const state = el("span", {});
  const tuned = el("span", {});
  const progress = el("span", {}, "–");
  const bar = el("progress", { max: "1", value: "0", "aria-label": `Progress of ${job.id}`, hidden: true });
  const node = row([link, state, { value: el("span", { class: "progress" }, bar, progress), class: "nowrap" }, { value: job.model, class: "wrap" },
    { value: tuned, class: "wrap" }, { value: moment(job.created_at), class: "nowrap" }]);
  return { job, node, link, state, tuned, progress, bar };
}

function showProgress(one, status) {
  if (!status || !status.total_steps) return;
  one.bar.hidden = false;
  one.bar.value = status.step / status.total_steps;
  const left = one.job.status === "running" && Number.isFinite(status.eta_s) ? `, ${duration(status.eta_s)} left` : "";
  say(one.progress, `${count(status.step)} of ${count(status.total_steps)} steps${left}`);
}
