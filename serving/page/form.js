// Forms: a label and a description for each control; API errors are shown next to the control they concern.

import { ApiError } from "./api.js";
import { el, fill, say } from "./nodes.js";

/** A control with its label. about: a description shown below it. */
export function field(name, label, control, about = "") {
  const id = `field-${name}`;
  const note = el("p", { id: `${id}-note`, class: "note" }, about);
  const fault = el("p", { id: `${id}-fault`, class: "fault" });
  fault.hidden = true;
  note.hidden = !about;
  control.id = id;
  control.name = name;
  if (about) control.setAttribute("aria-describedby", note.id);
  const mandatory = control.required ? el("span", { class: "note" }, " (required)") : null;
  const node = el("div", { class: "field" }, el("label", { for: id }, label, mandatory), control, note, fault);
  return { name, node, control, fault, note };
}

/** Error banner of a form. */
export function errorBox() {
  const node = el("p", { class: "banner bad", role: "alert" });
  node.hidden = true;
  return { node };
}

/** Mark a field as invalid, or as valid if the text is empty. */
export function mark(one, text) {
  say(one.fault, text);
  one.fault.hidden = !text;
  const notes = [one.note.hidden ? "" : one.note.id, text ? one.fault.id : ""].filter(Boolean).join(" ");
  if (notes) one.control.setAttribute("aria-describedby", notes);
  else one.control.removeAttribute("aria-describedby");
  if (text) one.control.setAttribute("aria-invalid", "true");
  else one.control.removeAttribute("aria-invalid");
}

/** Call `send` on submit. The button shows that it is running; API errors are shown in the form. */
export function submitting(form, button, fields, box, send) {
  const label = button.textContent;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.getAttribute("aria-disabled")) return;
    for (const one of fields) mark(one, "");
    box.node.hidden = true;
    const empty = fields.find((one) => one.control.required && !one.control.value);
    if (empty) {
      mark(empty, "This field is required.");
      empty.control.focus();
      return;
    }
    button.setAttribute("aria-disabled", "true"); // unlike `disabled`, it keeps the focus
    fill(button, "Please wait…");
    try {
      await send();
    } catch (error) {
      if (!(error instanceof ApiError)) {
        if (error.name === "AbortError") return;
        throw error;
      }
      showError(error, fields, box);
    } finally {
      button.removeAttribute("aria-disabled");
      fill(button, label);
    }
  });
}

/** Show an API error next to its field, or at the top if it belongs to none. */
function showError(error, fields, box) {
  const named = fields.find((one) => error.param && (one.name === error.param || error.param.endsWith(`.${one.name}`)));
  if (named) {
    mark(named, error.message);
    named.control.focus();
    return;
  }
  fill(box.node, error.message);
  box.node.hidden = false;
  box.node.scrollIntoView({ block: "nearest" });
}

/** Ask for confirmation of an action that cannot be undone. Resolves to a boolean. */
export function confirmed(question, yes) {
  return new Promise((resolve) => {
    const title = el("h2", { id: "question" }, question);
    const no = el("button", { type: "button", onclick: () => dialog.close("no") }, "Keep it");
    const go = el("button", { type: "button", class: "danger", onclick: () => dialog.close("yes") }, yes);
    const dialog = el("dialog", { "aria-labelledby": "question" }, title, el("div", { class: "actions" }, go, no));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
    no.focus();
  });
}

/** Wrap a click handler so that API errors are shown in the box. */
export function clicked(action, box) {
  return async () => {
    box.node.hidden = true;
    try {
      await action();
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof ApiError)) throw error;
      fill(box.node, error.message);
      box.node.hidden = false;
    }
  };
}
