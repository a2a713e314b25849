// The API key, for servers that require one.

import { get, key, setKey } from "./api.js";
import { errorBox, field, submitting } from "./form.js";
import { el, fill } from "./nodes.js";

export function keyView({ main, heading, signal, announce, accepted }) {
  fill(heading, "API key");
  const input = el("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const box = errorBox();
  const about = "Stored in this tab until you close it, and sent only to this server.";
  const keyField = field("key", "API key", input, about);
  const send = el("button", { type: "submit", class: "first" }, "Use this key");
  const forget = el("button", { type: "button", onclick: drop }, "Forget this key");
  forget.hidden = !key();
  const form = el("form", { class: "narrow", novalidate: true }, box.node, keyField.node,
    el("div", { class: "actions" }, send, forget));
  const lead = "A server that listens beyond this machine requires an API key; create one with `tunesmith keys create NAME`.";
  main.append(el("p", { class: "lead" }, lead), form);

  submitting(form, send, [keyField], box, async () => {
    const entered = input.value.trim();
    const before = key();
    setKey(entered);
    try {
      await get("/v1/models", signal);
    } catch (error) {
      if (error.status !== 403) { // a valid key without this scope
        setKey(before);
        throw error.needsKey ? Object.assign(error, { param: "key" }) : error;
      }
    }
    announce("API key accepted.");
    accepted(entered);
  });

  function drop() {
    setKey("");
    forget.hidden = true;
    announce("API key removed.");
    input.focus();
  }
}
