// The API key of a server that asks for one.

import { get, key, setKey } from "./api.js";
import { errorBox, field, submitting } from "./form.js";
import { el, fill } from "./nodes.js";

export function keyView({ main, heading, signal, announce, accepted }) {
  fill(heading, "API key");
  const input = el("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const box = errorBox();
  const about = "It is kept in this tab until you close it, and sent to this server only.";
  const keyField = field("key", "API key", input, about);
  const send = el("button", { type: "submit", class: "first" }, "Use this key");
  const forget = el("button", { type: "button", onclick: drop }, "Forget the key");
  forget.hidden = !key();
  const form = el("form", { class: "narrow", novalidate: true }, box.node, keyField.node,
    el("div", { class: "actions" }, send, forget));
  const lead = "A server beyond this machine asks for a key; `tunesmith keys create NAME` makes one.";
  main.append(el("p", { class: "lead" }, lead), form);

  submitting(form, send, [keyField], box, async () => {
    const given = input.value.trim();
    const before = key();
    setKey(given);
    try {
      await get("/v1/models", signal);
    } catch (error) {
      if (error.status !== 403) { // a key without that scope is a key
        setKey(before);
        throw error.needsKey ? Object.assign(error, { param: "key" }) : error;
      }
    }
    announce("The key is accepted.");
    accepted(given);
  });

  function drop() {
    setKey("");
    forget.hidden = true;
    announce("The key is forgotten.");
    input.focus();
  }
}
