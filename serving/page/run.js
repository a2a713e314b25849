// What the run's own directory tells: the receipts of the data check, and the evaluation before and after.

import { el, fill, row, table } from "./nodes.js";
import { count, loss, percent } from "./words.js";

const FATES = {
  kept: "kept",
  truncated: "cut at the end",
  masked: "kept, partly not trained",
  dropped: "left out, too long",
  rejected: "refused",
  duplicate: "left out, equal to another",
};
const SPLITS = { train: "Training", validation: "Validation" };

export function receipts(told) {
  if (!told) return el("p", { class: "none" }, "The rows have not been read yet.");
  const names = Object.keys(told.splits);
  const number = (value) => ({ value: count(value ?? 0), class: "number" });
  const line = (title, value) => row([title, ...names.map((name) => number(value(told.splits[name])))]);
  const used = Object.keys(FATES).filter((fate) => fate === "kept" || told.fates?.[fate]);
  const columns = [{ name: "" }, ...names.map((name) => ({ name: SPLITS[name] ?? name, number: true }))];
  columns[0].name = "What became of the rows";
  const body = el("tbody", {}, line("Rows read", (split) => split.rows),
    used.map((fate) => line(`of these ${FATES[fate]}`, (split) => split.fates?.[fate])),
    line("Tokens", (split) => split.tokens), line("of these trained or measured", (split) => split.supervised_tokens),
    line("Rows equal to an earlier one", (split) => split.duplicates),
    line("Tokens that were cut off", (split) => split.lost_tokens),
    line("Tokens of the middle row", (split) => split.length_percentiles?.p50),
    line("Tokens of the longest row", (split) => split.length_percentiles?.max));
  return el("div", {}, table("Receipts of the data check", columns, body), near(told.near_duplicates),
    hidden(told.deidentified), rejects(told.rejects));
}

function near(found) {
  if (!found) return null;
  const parts = [];
  if (found.train) parts.push(`${count(found.train)} training rows are much like an earlier one`);
  if (found.across) parts.push(`${count(found.across)} validation rows are much like a training row`);
  return parts.length ? el("p", { class: "note" }, `${parts.join("; ")}.`) : null;
}

function hidden(kinds) {
  const named = Object.entries(kinds ?? {}).map(([kind, places]) => `${kind} ${count(places)}`);
  return named.length ? el("p", { class: "note" }, `De-identified before training: ${named.join(", ")}.`) : null;
}

function rejects(lines) {
  if (!lines.length) return el("p", { class: "note" }, "No row was refused.");
  const columns = ["Row", "Why it was refused", "What to do"].map((name) => ({ name }));
  const body = el("tbody", {}, lines.map((line) =>
    row([{ value: `${line.source}:${line.line}`, class: "nowrap" }, { value: line.reason, class: "wrap" }, { value: line.remedy, class: "wrap" }])));
  return el("details", {}, el("summary", {}, `Refused rows (the first ${lines.length})`), table("Refused rows", columns, body));
}

export function evaluation(told, hasValidation) {
  if (!told) {
    const why = hasValidation ? "It is measured when training begins, and again at its end." : "The job has no validation file, so nothing was measured.";
    return el("p", { class: "none" }, why);
  }
  const { before, after, difference } = told;
  const columns = ["On the validation file", "Before", "After", "Difference", "95% CI"].map((name, place) => ({ name, number: place > 0 }));
  const line = (title, key, form, change) => {
    const signed = (value) => (value > 0 ? "+" : "") + form(value);
    const interval = change && change.low !== null ? `${signed(change.low)} to ${signed(change.high)}` : "–";
    const cells = [form(before[key]), after ? form(after[key]) : "–", change ? signed(change.value) : "–", interval];
    return row([title, ...cells.map((value) => ({ value, class: "number" }))]);
  };
  const body = el("tbody", {}, line("Loss", "loss", loss, difference?.loss), line("Perplexity", "perplexity", loss, null),
    line("Token accuracy", "token_accuracy", percent, difference?.token_accuracy));
  const lead = difference
    ? `${difference.num_better} of ${difference.num_examples} examples have a lower loss after training.`
    : `${count(before.num_examples)} examples were measured before training${after ? " and after it" : "; the end is to come"}.`;
  return el("div", {}, el("p", {}, lead), table("Evaluation before and after", columns, body));
}
