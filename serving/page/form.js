// Forms: a label and an explanation for each control, and the API's refusals beside the control they speak of.

import { ApiError } from "./api.js";
import { el, fill, say } from "./nodes.js";

/** A control with its label. about: a sentence below it. */
export function field(name, label, control, about = "") {
  const id = `field-${name}`;
  const note = el("p", { id: `${id}-note`, class: "note" }, about);
  const fault = el("p", { id: `${id}-fault`, class: "fault" });
  fault.hidden = true;
  note.hidden = !about;
  control.id = id;
  control.name = name;
  if (about) control.setAttribute("aria-describedby", note.id);
  const mandatory = control.required ? el("span", { class: "note" }, " (needed)") : null;
  const node = el("div", { class: "field" }, el("label", { for: id }, label, mandatory), control, note, fault);
  return { name, node, control, fault, note };
}

/** Where a form says what is wrong with it as a whole. */
export function errorBox() {
  const node = el("p", { class: "banner bad", role: "alert" });
  node.hidden = true;
  return { node };
}

/** Marks a field as wrong, or as right where there is no text. */
export function mark(one, text) {
  say(one.fault, text);
  one.fault.hidden = !text;
  const notes = [one.note.hidden ? "" : one.note.id, text ? one.fault.id : ""].filter(Boolean).join(" ");
  if (notes) one.control.setAttribute("aria-describedby", notes);
  else one.control.removeAttribute("aria-describedby");
  if (text) one.control.setAttribute("aria-invalid", "true");
  else one.control.removeAttribute("aria-invalid");
}

/** Calls `send` when the form is sent; while it runs the button says so, and what it throws is shown. */
export function submitting(form, button, fields, box, send) {
  const words = button.textContent;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.getAttribute("aria-disabled")) return;
    for (const one of fields) mark(one, "");
    box.node.hidden = true;
    const empty = fields.find((one) => one.control.required && !one.control.value);
    if (empty) {
      mark(empty, "This is needed.");
      empty.control.focus();
      return;
    }
    button.setAttribute("aria-disabled", "true"); // it keeps the focus
    fill(button, "One moment …");
    try {
      await send();
    } catch (error) {
      if (!(error instanceof ApiError)) {
        if (error.name === "AbortError") return;
        throw error;
      }
      refused(error, fields, box);
    } finally {
      button.removeAttribute("aria-disabled");
      fill(button, words);
    }
  });
}

/** The API's refusal beside its field; what belongs to no field, on top. */
function refused(error, fields, box) {
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

/** Asks before something that cannot be undone; resolves to whether it shall be done. */
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

/** A click's handler that shows in the box what the API refuses. */
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
