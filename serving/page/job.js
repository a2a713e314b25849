// One job: status and actions, training curves, evaluation, row outcomes, checkpoints, events.

import { get, post, text } from "./api.js";
import { poll, tracked } from "./connection.js";
import { curve } from "./curve.js";
import { eventList, Events } from "./events.js";
import { saveFile } from "./files.js";
import { clicked, confirmed, errorBox } from "./form.js";
import { ACTIVE, count, duration, FINAL, loss, moment, percent, statusText, toneOf } from "./format.js";
import { el, facts, fill, row, say, section, table } from "./nodes.js";
import { evaluation, receipts } from "./run.js";
import { term } from "./terms.js";

const RUNNING_MS = 1_500;
const WAITING_MS = 3_000;
const HYPERPARAMETERS = { n_epochs: "epochs", batch_size: "batch size", learning_rate_multiplier: "learning rate multiplier" };
const OLDER_MS = 200; // between two pages of the events of a long run

export function jobView({ main, heading, signal, announce, id }) {
  fill(heading, `Job ${id}`);
  const path = `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
  const box = errorBox();
  const handled = (action) => clicked(() => tracked(action), box);
  const head = headOf({ path, box, handled, announce, heading });
  const events = new Events(id, signal);
  const list = eventList(events, handled);
  const curves = curvesOf();
  const containers = { evaluation: el("div"), receipts: el("div"), checkpoints: el("div") };
  main.append(box.node, head.node, section("Training curves", curves.node), section("Evaluation before and after", containers.evaluation),
    section("Row outcomes", containers.receipts), section("Checkpoints", containers.checkpoints), section("Events", list.node));
  const previous = {};

  poll(async () => {
    const job = await get(path, signal);
    const run = await get(`${path}/run`, signal);
    const fresh = await events.refresh();
    if (!previous.checkpoints || fresh.length) previous.checkpoints = await get(`${path}/checkpoints?limit=100`, signal);
    if (job.status !== previous.status && previous.status) announce(`Job status: ${statusText(job.status)}.`);
    head.update(job, run.status);
    curves.add(fresh);
    list.update();
    if (!previous.status) backfill(job);
    const ended = FINAL.includes(job.status);
    curves.end(ended);
    refresh(containers.evaluation, [run.evaluation, ended], () => evaluation(run.evaluation, Boolean(job.validation_file), ended));
    refresh(containers.receipts, [run.receipts, ended], () => receipts(run.receipts, ended));
    refresh(containers.checkpoints, [previous.checkpoints.data, ended], () => checkpoints(previous.checkpoints.data, ended));
    previous.status = job.status;
    if (ended) return null;
    return job.status === "running" || job.status === "pausing" ? RUNNING_MS : WAITING_MS;
  }, signal, (error) => {
    fill(box.node, error.message);
    box.node.hidden = false;
    for (const node of main.querySelectorAll("section")) node.hidden = true;
  });

  /** Fill in the steps before the page was opened, from the result file or from older events. */
  async function backfill(job) {
    if (job.result_files.length && events.hasOlder) {
      const csv = await text(`/v1/files/${encodeURIComponent(job.result_files[0])}/content`, signal).catch(() => null);
      if (csv) return curves.addCsv(csv);
    }
    poll(async () => {
      curves.add(await events.older());
      list.update();
      return events.hasOlder ? OLDER_MS : null;
    }, signal, () => {});
  }
}

/** Render again only if the value changed, so that focus and open details are kept. */
function refresh(container, value, render) {
  const shown = JSON.stringify(value ?? null);
  if (container.dataset.shown === shown) return;
  const open = [...container.querySelectorAll("details")].map((node) => node.open);
  fill(container, render());
  container.querySelectorAll("details").forEach((node, index) => { node.open = open[index] ?? false; });
  container.dataset.shown = shown;
}

function headOf({ path, box, handled, announce, heading }) {
  const state = el("span", { class: "state" });
  const steps = el("span", {});
  const bar = el("progress", { max: "1", value: "0", "aria-label": "Training progress", hidden: true });
  const fault = el("p", { class: "banner bad", hidden: true });
  const about = el("div");
  const ask = (verb, message) => handled(async () => {
    update(await post(`${path}/${verb}`), null);
    announce(message);
  });
  const pause = el("button", { type: "button", onclick: ask("pause", "Pausing the job.") }, "Pause");
  const resume = el("button", { type: "button", onclick: ask("resume", "Job resumed.") }, "Resume");
  const cancel = el("button", { type: "button", class: "danger" }, "Cancel");
  cancel.addEventListener("click", async () => {
    if (await confirmed("Cancel this job? It cannot be resumed.", "Cancel job")) await ask("cancel", "Job cancelled.")();
  });
  const play = el("a", { class: "button", hidden: true }, "Try in playground");
  const again = el("a", { class: "button", hidden: true }, "Continue training from this model");
  const actions = el("div", { class: "actions" }, pause, resume, cancel, play, again);
  const node = el("div", { class: "head" }, el("p", { class: "progress" }, state, bar, steps), fault, actions, about);
  let previous = "";

  function update(job, status) {
    say(state, statusText(job.status));
    state.className = `state ${toneOf(job.status)}`;
    const focused = actions.contains(document.activeElement) ? document.activeElement : null;
    pause.hidden = job.status !== "running";
    resume.hidden = job.status !== "paused";
    cancel.hidden = !ACTIVE.includes(job.status);
    play.hidden = again.hidden = !job.fine_tuned_model;
    if (focused?.hidden) heading.focus(); // hiding the focused control would lose the focus
    play.href = `#/playground?model=${encodeURIComponent(job.fine_tuned_model ?? "")}`;
    again.href = `#/new?model=${encodeURIComponent(job.fine_tuned_model ?? "")}`;
    if (status?.total_steps) {
      bar.hidden = FINAL.includes(job.status);
      bar.value = status.step / status.total_steps;
      const left = job.status === "running" && Number.isFinite(status.eta_s) ? `, ${duration(status.eta_s)} left` : "";
      say(steps, `${count(status.step)} of ${count(status.total_steps)} steps${left}`);
    }
    fault.hidden = !job.error?.message;
    say(fault, job.error?.message ? `${job.error.message}${job.error.code ? ` (${job.error.code})` : ""}` : "");
    if (previous === JSON.stringify(job)) return;
    previous = JSON.stringify(job);
    fill(about, factsOf(job, box, announce));
  }
  return { node, update };
}

function factsOf(job, box, announce) {
  const { type } = job.method;
  const numbers = Object.entries(job.method[type]?.hyperparameters ?? {}).map(([name, value]) => `${HYPERPARAMETERS[name] ?? name} ${value}`);
  const metadata = Object.entries(job.metadata ?? {}).map(([name, value]) => `${name}: ${value}`);
  const [result] = job.result_files;
  return facts([
    ["Model", job.model],
    ["Fine-tuned model", job.fine_tuned_model ? el("code", {}, job.fine_tuned_model) : null],
    ["Suffix", job.user_provided_suffix],
    ["Method", type === "dpo" ? "DPO" : type],
    ["Hyperparameters", numbers.join(", ")],
    ["Seed", job.seed],
    ["Training file", el("code", {}, job.training_file)],
    ["Validation file", job.validation_file ? el("code", {}, job.validation_file) : null],
    ["Created", moment(job.created_at)],
    [job.status === "succeeded" ? "Finished" : "Ended", job.finished_at ? `${moment(job.finished_at)}, after ${duration(job.finished_at - job.created_at)}` : null],
    [term("Trained tokens"), job.trained_tokens === null ? null : count(job.trained_tokens)],
    ["Metadata", metadata.join(", ")],
    ["Result file", result ? el("button", { type: "button", onclick: () => saveFile(result, `${job.id}-results.csv`, box, announce) }, "Download metrics (CSV)") : null],
  ]);
}

/** Charts of loss and token accuracy by step, from events or from the result file. */
function curvesOf() {
  const [losses, accuracies] = [curve("Loss", loss), curve("Token accuracy", percent, (value) => `${Number((100 * value).toFixed(1))}%`)];
  const none = el("p", { class: "none" }, "No training steps yet.");
  const steps = new Map();
  let total = 0;

  function show() {
    const sorted = [...steps].sort(([a], [b]) => a - b);
    const line = (name, look, key, dots) => ({ name, look, dots,
      points: sorted.filter(([, values]) => Number.isFinite(values[key])).map(([step, values]) => [step, values[key]]) });
    losses.update([line("Training", "training", "train_loss"), line("Validation", "validation", "valid_loss", true)], total);
    accuracies.update([line("Training", "training", "train_mean_token_accuracy"),
      line("Validation", "validation", "valid_mean_token_accuracy", true)], total);
    none.hidden = steps.size > 0;
  }

  return {
    node: el("div", {}, none, losses.node, accuracies.node),
    end(ended) {
      say(none, ended ? "The job ended before its first training step." : "No training steps yet.");
    },
    add(events) {
      const measured = events.filter((event) => event.type === "metrics" && event.data?.step);
      for (const { data } of measured) {
        steps.set(data.step, data);
        total = Math.max(total, data.total_steps ?? 0);
      }
      if (measured.length) show();
    },
    addCsv(csv) {
      for (const cells of csv.trim().split("\n").slice(1).map((one) => one.split(","))) {
        const [step, ...values] = cells.map((cell) => (cell === "" ? NaN : Number(cell)));
        const [train_loss, train_mean_token_accuracy, valid_loss, valid_mean_token_accuracy] = values;
        if (!steps.has(step)) steps.set(step, { train_loss, train_mean_token_accuracy, valid_loss, valid_mean_token_accuracy });
      }
      show();
    },
  };
}

function checkpoints(saved, ended) {
  if (!saved.length) {
    const none = ended ? "The job has no checkpoints." : "No checkpoints yet. One is saved at the end of every epoch; the last three are kept.";
    return el("p", { class: "none" }, none);
  }
  const columns = ["Step", "Model", "Training loss", "Validation loss", "Actions"].map((name) => ({ name: term(name), number: name.endsWith("loss") }));
  const number = (value) => ({ value: loss(value), class: "number" });
  const body = el("tbody", {}, saved.map((one) => {
    const name = one.fine_tuned_model_checkpoint;
    const href = `#/playground?model=${encodeURIComponent(name)}`;
    return row([count(one.step_number), { value: el("code", {}, name), class: "wrap" }, number(one.metrics.train_loss),
      number(one.metrics.valid_loss ?? NaN), el("a", { href, "aria-label": `Try step ${one.step_number} in the playground` }, "Try")]);
  }));
  return table("Checkpoints, newest first", columns, body);
}
