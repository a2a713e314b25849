// Form for a new job. Empty hyperparameters are sent as "auto": the server chooses them.

import { get, post, randomId } from "./api.js";
import { tracked } from "./connection.js";
import { errorBox, field, submitting } from "./form.js";
import { moment } from "./format.js";
import { el, fill } from "./nodes.js";

const NUMBERS = [
  ["n_epochs", "Epochs", "Passes over the training file, 1 to 50."],
  ["batch_size", "Batch size", "Examples per optimizer step, 1 to 256."],
  ["learning_rate_multiplier", "Learning rate multiplier", "Factor applied to the default learning rate; above 0, at most 100."],
  ["beta", "Beta", "Higher values keep the model closer to the reference model; above 0, at most 2."],
];

export function newJobView({ main, heading, signal, announce, file, model }) {
  fill(heading, "New job");
  const fields = makeFields();
  const { method, beta } = fields;
  const box = errorBox();
  const send = el("button", { type: "submit", class: "first" }, "Create job");
  const group = (title, ...names) =>
    el("fieldset", {}, el("legend", {}, title), el("div", { class: "grid" }, names.map((name) => fields[name].node)));
  const form = el("form", { novalidate: true }, box.node,
    group("Model and data", "model", "training_file", "validation_file", "method"),
    group("Hyperparameters", "n_epochs", "batch_size", "learning_rate_multiplier", "beta"),
    group("Name and seed", "suffix", "seed"),
    el("div", { class: "actions" }, send));
  const upload = el("a", { href: "#/files" }, "Upload a file");
  main.append(el("p", { class: "lead" }, "Trains a LoRA adapter from an uploaded file. ", upload, " first."), form);
  const methodChanged = () => { beta.node.hidden = method.control.value !== "dpo"; };
  method.control.addEventListener("change", methodChanged);
  methodChanged();
  load(fields, { file, model, signal, box });

  const once = { id: randomId(), of: "" };
  submitting(form, send, Object.values(fields), box, async () => {
    const body = requestBody(fields);
    if (once.of && once.of !== JSON.stringify(body)) once.id = randomId();
    once.of = JSON.stringify(body);
    const job = await tracked(() => post("/v1/fine_tuning/jobs", body, { signal, once: once.id }));
    announce(`Job ${job.id} created.`);
    location.hash = `#/jobs/${encodeURIComponent(job.id)}`;
  });
}

function makeFields() {
  const fields = {
    model: field("model", "Model", el("select", { required: true }), "A base model, or a fine-tuned model to continue training from."),
    training_file: field("training_file", "Training file", el("select", { required: true })),
    validation_file: field("validation_file", "Validation file", el("select"), "Optional; evaluated before, during and after training."),
    method: field("method", "Method", el("select", {}, el("option", { value: "supervised" }, "Supervised"),
      el("option", { value: "dpo" }, "DPO (preference pairs)"))),
  };
  for (const [name, label, about] of NUMBERS) {
    const control = el("input", { type: "text", inputmode: "decimal", placeholder: "auto", autocomplete: "off" });
    fields[name] = field(name, label, control, about);
  }
  const plain = { type: "text", autocomplete: "off", spellcheck: "false" };
  fields.suffix = field("suffix", "Suffix", el("input", plain), "Part of the fine-tuned model's name; up to 64 characters.");
  fields.seed = field("seed", "Seed", el("input", { ...plain, inputmode: "numeric" }), "The same seed reproduces the same order of examples.");
  return fields;
}

/** Load the options of the lists. file, model: the initial selection. */
async function load(fields, { file, model, signal, box }) {
  try {
    const [models, files] = await tracked(() =>
      Promise.all([get("/v1/models", signal), get("/v1/files?purpose=fine-tune&limit=1000", signal)]));
    const choices = models.data.map((one) => el("option", { value: one.id }, one.id));
    fill(fields.model.control, choices);
    fill(fields.training_file.control, el("option", { value: "" }, files.data.length ? "Choose a file" : "No files yet"), options(files));
    fill(fields.validation_file.control, el("option", { value: "" }, "None"), options(files));
    if (model) fields.model.control.value = model;
    if (file) fields.training_file.control.value = file;
  } catch (error) {
    if (signal.aborted) return;
    fill(box.node, error.message);
    box.node.hidden = false;
  }
}

function options(files) {
  return files.data.map((one) => el("option", { value: one.id }, `${one.filename} (${moment(one.created_at)})`));
}

/** Body of the create request. Text that is not a number is sent unchanged: the API reports the error. */
function requestBody(fields) {
  const value = (name) => fields[name].control.value.trim();
  const kind = value("method");
  const names = NUMBERS.map(([name]) => name).filter((name) => name !== "beta" || kind === "dpo");
  const hyperparameters = Object.fromEntries(names.map((name) => [name, value(name) ? number(value(name)) : "auto"]));
  const body = { model: value("model"), training_file: value("training_file"), method: { type: kind, [kind]: { hyperparameters } } };
  if (value("validation_file")) body.validation_file = value("validation_file");
  if (value("suffix")) body.suffix = value("suffix");
  if (value("seed")) body.seed = number(value("seed"));
  return body;
}

function number(text) {
  const parsed = Number(text);
  return Number.isFinite(parsed) ? parsed : text;
}
