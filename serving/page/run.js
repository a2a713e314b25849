// Row outcomes and the evaluation before and after training, from the job's run directory.

import { count, loss, percent, points } from "./format.js";
import { el, row, table } from "./nodes.js";
import { term } from "./terms.js";

const OUTCOMES = {
  kept: "Rows kept",
  truncated: "Rows truncated",
  masked: "Rows partly masked",
  dropped: "Rows dropped",
  rejected: "Rows rejected",
  duplicate: "Duplicates dropped",
};
const SPLITS = { train: "Training", validation: "Validation" };

/** ended: the job is in a final state, so that nothing is still to come. */
export function receipts(summary, ended) {
  if (!summary) return el("p", { class: "none" }, ended ? "The job ended before its rows were prepared." : "No rows read yet.");
  const names = Object.keys(summary.splits);
  const number = (value) => ({ value: count(value ?? 0), class: "number" });
  const line = (title, value) => row([term(title), ...names.map((name) => number(value(summary.splits[name])))]);
  const outcomes = Object.keys(OUTCOMES).filter((outcome) => outcome === "kept" || summary.fates?.[outcome]);
  const columns = [{ name: "Rows and tokens" }, ...names.map((name) => ({ name: SPLITS[name] ?? name, number: true }))];
  const body = el("tbody", {}, line("Rows read", (split) => split.rows),
    outcomes.map((outcome) => line(OUTCOMES[outcome], (split) => split.fates?.[outcome])),
    line("Tokens", (split) => split.tokens), line("Supervised tokens", (split) => split.supervised_tokens),
    line("Exact duplicates", (split) => split.duplicates),
    line("Truncated tokens", (split) => split.lost_tokens),
    line("Median row length", (split) => split.length_percentiles?.p50),
    line("Longest row", (split) => split.length_percentiles?.max));
  return el("div", {}, table("Row outcomes", columns, body), nearDuplicates(summary.near_duplicates),
    deidentified(summary.deidentified), rejects(summary.rejects));
}

function nearDuplicates(counts) {
  if (!counts) return null;
  const parts = [];
  if (counts.train) parts.push(`${count(counts.train)} in the training file`);
  if (counts.across) parts.push(`${count(counts.across)} in the validation file`);
  return parts.length ? el("p", { class: "note" }, `Near-duplicates of an earlier training row: ${parts.join(", ")}.`) : null;
}

function deidentified(kinds) {
  const named = Object.entries(kinds ?? {}).map(([kind, places]) => `${kind} (${count(places)})`);
  return named.length ? el("p", { class: "note" }, `De-identified before training: ${named.join(", ")}.`) : null;
}

function rejects(lines) {
  if (!lines.length) return el("p", { class: "note" }, "No rows were rejected.");
  const columns = ["Row", "Reason", "Suggested fix"].map((name) => ({ name }));
  const body = el("tbody", {}, lines.map((line) =>
    row([{ value: `${line.source}:${line.line}`, class: "nowrap" }, { value: line.reason, class: "wrap" }, { value: line.remedy, class: "wrap" }])));
  return el("details", {}, el("summary", {}, `Rejected rows (first ${count(lines.length)})`), table("Rejected rows", columns, body));
}

export function evaluation(result, hasValidation, ended) {
  if (!result) {
    const coming = ended ? "The job ended before it was evaluated." : "Evaluated before and after training.";
    const why = hasValidation ? coming : "Not evaluated: the job has no validation file.";
    return el("p", { class: "none" }, why);
  }
  const { before, after, difference } = result;
  const columns = ["Metric", "Before", "After", "Change", "95% CI"].map((name, index) => ({ name: term(name), number: index > 0 }));
  const line = (title, key, form, change, formDifference = form) => {
    const signed = (value) => (value > 0 ? "+" : "") + formDifference(value).replace("-", "−");
    const interval = change && change.low !== null ? `${signed(change.low)} to ${signed(change.high)}` : "–";
    const cells = [form(before[key]), after ? form(after[key]) : "–", change ? signed(change.value) : "–", interval];
    return row([term(title), ...cells.map((value) => ({ value, class: "number" }))]);
  };
  const body = el("tbody", {}, line("Loss", "loss", loss, difference?.loss), line("Perplexity", "perplexity", loss, null),
    line("Token accuracy", "token_accuracy", percent, difference?.token_accuracy, points));
  const only = ended ? "training; the job ended before the evaluation after training" : "training; the evaluation after training is pending";
  const lead = difference
    ? `${count(difference.num_better)} of ${count(difference.num_examples)} validation examples have a lower loss after training.`
    : `${count(before.num_examples)} validation examples, evaluated before ${after ? "and after training" : only}.`;
  return el("div", {}, el("p", {}, lead), table("Evaluation before and after", columns, body));
}
