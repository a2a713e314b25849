// The same question to two models, their answers side by side as they are written.

import { get, stream } from "./api.js";
import { told } from "./connection.js";
import { errorBox, field, submitting } from "./form.js";
import { el, fill, say } from "./nodes.js";

export function playgroundView({ main, heading, signal, announce, model }) {
  fill(heading, "Playground");
  const plain = { type: "text", autocomplete: "off" };
  const fields = {
    base: field("base", "Base", el("select", { required: true })),
    tuned: field("tuned", "Tuned", el("select", { required: true })),
    system: field("system", "System message", el("textarea", { rows: "2" })),
    temperature: field("temperature", "Temperature", el("input", { ...plain, inputmode: "decimal", value: "0" }), "0 takes the likeliest word each time; at most 2."),
    max_tokens: field("max_tokens", "Longest answer", el("input", { ...plain, inputmode: "numeric", value: "200" }), "In tokens."),
    question: field("question", "Question", el("textarea", { rows: "3", required: true }), "Ctrl+Enter asks. Both models see their own earlier answers."),
  };
  const box = errorBox();
  const sides = [side("Base", fields.base), side("Tuned", fields.tuned)];
  const ask = el("button", { type: "submit", class: "first" }, "Ask both");
  const stop = el("button", { type: "button", hidden: true }, "Stop");
  const clear = el("button", { type: "button", hidden: true }, "Begin anew");
  const form = el("form", { novalidate: true }, box.node,
    el("div", { class: "grid" }, fields.base.node, fields.tuned.node, fields.temperature.node, fields.max_tokens.node),
    el("details", {}, el("summary", {}, "System message"), fields.system.node),
    fields.question.node, el("div", { class: "actions" }, ask, stop, clear));
  main.append(form, el("div", { class: "sides" }, sides.map((one) => one.node)));
  let running = null;

  fields.question.control.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  stop.addEventListener("click", () => running?.abort());
  clear.addEventListener("click", () => {
    for (const one of sides) one.clear();
    clear.hidden = true;
    announce("Both conversations begin anew.");
    fields.question.control.focus();
  });
  for (const one of sides) one.model.control.addEventListener("change", () => one.clear());
  load(fields, { model, signal, box, sides });

  submitting(form, ask, Object.values(fields), box, async () => {
    const question = fields.question.control.value.trim();
    running = new AbortController();
    stop.hidden = false;
    const asked = { question, system: fields.system.control.value.trim(), temperature: number(fields.temperature), max_tokens: number(fields.max_tokens) };
    const ended = AbortSignal.any([signal, running.signal]);
    const done = await Promise.all(sides.map((one) => one.answer(asked, ended)));
    const hadFocus = document.activeElement === stop;
    stop.hidden = true;
    if (signal.aborted) return;
    clear.hidden = false;
    if (hadFocus || done.every(Boolean)) fields.question.control.focus();
    if (done.every(Boolean)) fields.question.control.value = "";
    const said = sides.map((one) => `${one.name}: ${one.last()}`).join(" ");
    announce(running.signal.aborted ? "Both were stopped." : said);
  });
}

function number(one) {
  const text = one.control.value.trim();
  if (!text) return null;
  const parsed = Number(text);
  return Number.isFinite(parsed) ? parsed : text;
}

/** Fills the lists. model: the tuned one that is chosen at first, which may be a checkpoint; else the newest. */
async function load({ base, tuned }, { model, signal, box, sides }) {
  try {
    const { data } = await told(() => get("/v1/models", signal));
    const asked = model && !data.some((one) => one.id === model)
      ? [await told(() => get(`/v1/models/${encodeURIComponent(model)}`, signal))] : [];
    const all = [...asked, ...data];
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

/** One model's conversation. */
function side(name, model) {
  const title = el("h2", {}, name);
  const turns = el("div", { class: "turns" });
  const node = el("section", { "aria-label": `Conversation with the model ${name}` }, title, turns);
  let messages = [];
  let text = "";

  /** Whether the answer came whole. A question that got no answer is forgotten. */
  async function answer({ question, system, temperature, max_tokens }, signal) {
    const words = el("p", { class: "words", "aria-busy": "true" });
    const note = el("p", { class: "note" }, "Waiting …");
    turns.append(el("div", { class: "turn" }, el("p", { class: "asked" }, el("b", {}, "You "), question), words, note));
    const body = { model: model.control.value, messages: [...messages, { role: "user", content: question }], stream_options: { include_usage: true } };
    if (system) body.messages = [{ role: "system", content: system }, ...body.messages];
    if (temperature !== null) body.temperature = temperature;
    if (max_tokens !== null) body.max_completion_tokens = max_tokens;
    const began = performance.now();
    text = "";
    let tokens = null;
    let finish = null;
    try {
      for await (const chunk of stream("/v1/chat/completions", body, signal)) {
        const [choice] = chunk.choices;
        if (choice?.delta?.content) {
          text += choice.delta.content;
          words.append(choice.delta.content);
        }
        finish = choice?.finish_reason ?? finish;
        tokens = chunk.usage?.completion_tokens ?? tokens;
        say(note, "Writing …");
      }
      const seconds = (performance.now() - began) / 1000;
      say(note, `${tokens} tokens in ${seconds.toFixed(1)} s${finish === "length" ? ", cut at the longest answer" : ""}`);
      if (!text) words.append(el("i", {}, "(an empty answer)"));
      messages = [...messages, { role: "user", content: question }, { role: "assistant", content: text }];
      return true;
    } catch (error) {
      const stopped = signal.aborted;
      if (!stopped && !error.message) throw error;
      say(note, stopped ? "Stopped." : error.message);
      note.className = stopped ? "note" : "fault";
      return false;
    } finally {
      words.removeAttribute("aria-busy");
    }
  }

  function clear() {
    messages = [];
    fill(turns);
    say(title, `${name}: ${model.control.value}`);
  }

  return { name, node, model, answer, clear, last: () => text || "an empty answer." };
}
