// Sends the same message to two models and streams their responses side by side.

import { get, stream } from "./api.js";
import { tracked } from "./connection.js";
import { errorBox, field, submitting } from "./form.js";
import { count } from "./format.js";
import { el, fill, say } from "./nodes.js";

export function playgroundView({ main, heading, signal, announce, model }) {
  fill(heading, "Playground");
  const plain = { type: "text", autocomplete: "off" };
  const fields = {
    base: field("base", "Base model", el("select", { required: true })),
    tuned: field("tuned", "Fine-tuned model", el("select", { required: true })),
    system: field("system", "System message", el("textarea", { rows: "2" })),
    temperature: field("temperature", "Temperature", el("input", { ...plain, inputmode: "decimal", value: "0" }), "0 always picks the most likely token; at most 2."),
    max_tokens: field("max_tokens", "Max tokens", el("input", { ...plain, inputmode: "numeric", value: "200" }), "Maximum length of a response."),
    message: field("message", "Message", el("textarea", { rows: "3", required: true }), "Press Ctrl+Enter to send. Each model sees its own conversation."),
  };
  const box = errorBox();
  const sides = [side("Base model", fields.base), side("Fine-tuned model", fields.tuned)];
  const send = el("button", { type: "submit", class: "first" }, "Send");
  const stop = el("button", { type: "button", hidden: true }, "Stop");
  const clear = el("button", { type: "button", hidden: true }, "Clear");
  const form = el("form", { novalidate: true }, box.node,
    el("div", { class: "grid" }, fields.base.node, fields.tuned.node, fields.temperature.node, fields.max_tokens.node),
    el("details", {}, el("summary", {}, "System message"), fields.system.node),
    fields.message.node, el("div", { class: "actions" }, send, stop, clear));
  main.append(form, el("div", { class: "sides" }, sides.map((one) => one.node)));
  let running = null;

  fields.message.control.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  stop.addEventListener("click", () => running?.abort());
  clear.addEventListener("click", () => {
    for (const one of sides) one.clear();
    clear.hidden = true;
    announce("Both conversations cleared.");
    fields.message.control.focus();
  });
  for (const one of sides) one.model.control.addEventListener("change", () => one.clear());
  load(fields, { model, signal, box, sides });

  submitting(form, send, Object.values(fields), box, async () => {
    const message = fields.message.control.value.trim();
    running = new AbortController();
    stop.hidden = false;
    const request = { message, system: fields.system.control.value.trim(), temperature: number(fields.temperature), max_tokens: number(fields.max_tokens) };
    const ended = AbortSignal.any([signal, running.signal]);
    const done = await Promise.all(sides.map((one) => one.respond(request, ended)));
    const hadFocus = document.activeElement === stop;
    stop.hidden = true;
    if (signal.aborted) return;
    clear.hidden = false;
    if (hadFocus || done.every(Boolean)) fields.message.control.focus();
    if (done.every(Boolean)) fields.message.control.value = "";
    const responses = sides.map((one) => `${one.name}: ${one.last()}`).join(" ");
    announce(running.signal.aborted ? "Both responses stopped." : responses);
  });
}

function number(one) {
  const text = one.control.value.trim();
  if (!text) return null;
  const parsed = Number(text);
  return Number.isFinite(parsed) ? parsed : text;
}

/** Load the options of the lists. model: the fine-tuned model selected initially, possibly a checkpoint; by default the newest. */
async function load({ base, tuned }, { model, signal, box, sides }) {
  try {
    const { data } = await tracked(() => get("/v1/models", signal));
    const requested = model && !data.some((one) => one.id === model)
      ? [await tracked(() => get(`/v1/models/${encodeURIComponent(model)}`, signal))] : [];
    const all = [...requested, ...data];
    for (const one of [base, tuned]) fill(one.control, all.map(({ id }) => el("option", { value: id }, id)));
    const newest = data.filter((one) => one.parent).sort((a, b) => b.created - a.created)[0];
    const chosen = all.find((one) => one.id === model) ?? newest ?? data[0];
    if (!chosen) return;
    tuned.control.value = chosen.id;
    base.control.value = all.some((one) => one.id === chosen.parent) ? chosen.parent : (data[0]?.id ?? chosen.id);
    for (const one of sides) one.clear();
  } catch (error) {
    if (signal.aborted) return;
    fill(box.node, error.message);
    box.node.hidden = false;
  }
}

/** The conversation with one model. */
function side(name, model) {
  const title = el("h2", {}, name);
  const turns = el("div", { class: "turns" });
  const node = el("section", { "aria-label": `Conversation with the ${name.toLowerCase()}` }, title, turns);
  let messages = [];
  let text = "";

  /** Returns whether the response is complete. A message without a complete response is dropped from the conversation. */
  async function respond({ message, system, temperature, max_tokens }, signal) {
    const response = el("p", { class: "response", "aria-busy": "true" });
    const note = el("p", { class: "note" }, "Waiting…");
    turns.append(el("div", { class: "turn" }, el("p", { class: "message" }, el("b", {}, "You "), message), response, note));
    const body = { model: model.control.value, messages: [...messages, { role: "user", content: message }], stream_options: { include_usage: true } };
    if (system) body.messages = [{ role: "system", content: system }, ...body.messages];
    if (temperature !== null) body.temperature = temperature;
    if (max_tokens !== null) body.max_completion_tokens = max_tokens;
    const started = performance.now();
    text = "";
    let tokens = null;
    let finish = null;
    try {
      for await (const chunk of stream("/v1/chat/completions", body, signal)) {
        const [choice] = chunk.choices;
        if (choice?.delta?.content) {
          text += choice.delta.content;
          response.append(choice.delta.content);
        }
        finish = choice?.finish_reason ?? finish;
        tokens = chunk.usage?.completion_tokens ?? tokens;
        say(note, "Generating…");
      }
      const seconds = (performance.now() - started) / 1000;
      say(note, `${count(tokens)} tokens in ${seconds.toFixed(1)} s${finish === "length" ? ", stopped at the token limit" : ""}`);
      if (!text) response.append(el("i", {}, "(empty response)"));
      messages = [...messages, { role: "user", content: message }, { role: "assistant", content: text }];
      return true;
    } catch (error) {
      const stopped = signal.aborted;
      if (!stopped && !error.message) throw error;
      say(note, stopped ? "Stopped." : error.message);
      note.className = stopped ? "note" : "fault";
      return false;
    } finally {
      response.removeAttribute("aria-busy");
    }
  }

  function clear() {
    messages = [];
    fill(turns);
    say(title, `${name}: ${model.control.value}`);
  }

  return { name, node, model, respond, clear, last: () => text || "empty response." };
}
