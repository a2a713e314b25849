// Uploaded files: upload, list, download, delete, start a job.

import { download, get, remove, upload } from "./api.js";
import { poll, tracked } from "./connection.js";
import { clicked, confirmed, errorBox, field, submitting } from "./form.js";
import { el, fill, row, say, section, table } from "./nodes.js";
import { bytes, moment } from "./format.js";

const PAGE = 50;
const EVERY_MS = 5_000;
export const MAX_DOWNLOAD_BYTES = 200_000_000; // the browser holds the whole file in memory

export function filesView({ main, heading, signal, announce }) {
  fill(heading, "Files");
  const chosen = el("input", { type: "file", accept: ".jsonl", required: true });
  const about = "JSON Lines, one example per line: messages; prompt and completion; or preference pairs for DPO.";
  const fileField = field("file", "Data file", chosen, about);
  const box = errorBox();
  const send = el("button", { type: "submit", class: "first" }, "Upload");
  const bar = el("progress", { max: "1", value: "0", "aria-label": "Upload progress", hidden: true });
  const form = el("form", { class: "narrow", novalidate: true }, box.node, fileField.node,
    el("div", { class: "actions" }, send, bar));
  const body = el("tbody");
  const columns = ["File", "Purpose", "Size", "Uploaded", "Actions"].map((name) => ({ name, number: name === "Size" }));
  const list = table("Files, newest first", columns, body);
  const none = el("p", { class: "none" }, "Loading files…");
  const more = el("button", { type: "button", onclick: clicked(older, box), hidden: true }, "Show older files");
  const rows = new Map();
  let last = null;
  list.hidden = true;
  main.append(section("Upload", form), section("On the server", none, list, el("p", { class: "actions" }, more)));

  submitting(form, send, [fileField], box, async () => {
    const [selected] = chosen.files;
    bar.hidden = false;
    try {
      const file = await tracked(() => upload(selected, (fraction) => { bar.value = fraction; }, signal));
      add(file, true);
      announce(`Uploaded ${file.filename}.`);
      form.reset();
    } catch (error) {
      throw error.status === 400 ? Object.assign(error, { param: "file" }) : error;
    } finally {
      bar.hidden = true;
    }
  });

  poll(async () => {
    const before = [...rows.keys()];
    const page = await get(`/v1/files?limit=${PAGE}`, signal);
    for (const file of page.data.toReversed()) add(file, true);
    const listed = new Set(page.data.map((file) => file.id));
    if (!page.has_more) before.filter((id) => !listed.has(id)).forEach(drop); // deleted elsewhere
    if (last === null && page.data.length) last = page.data.at(-1).id;
    if (rows.size <= page.data.length) more.hidden = !page.has_more;
    settle();
    return EVERY_MS;
  }, signal, (error) => {
    fill(box.node, error.message);
    box.node.hidden = false;
    none.hidden = true;
  });

  function add(file, first) {
    if (rows.has(file.id)) return;
    const node = fileRow(file, { box, erase, announce });
    rows.set(file.id, node);
    if (first) body.prepend(node);
    else body.append(node);
    settle();
  }

  function drop(id) {
    rows.get(id)?.remove();
    rows.delete(id);
  }

  function settle() {
    list.hidden = rows.size === 0;
    none.hidden = rows.size > 0;
    say(none, "No files yet.");
  }

  async function older() {
    const page = await tracked(() => get(`/v1/files?limit=${PAGE}&after=${last}`, signal));
    for (const file of page.data) add(file, false);
    last = page.data.at(-1)?.id ?? last;
    more.hidden = !page.has_more;
    announce(`Showing ${rows.size} files.`);
  }

  async function erase(file) {
    if (!(await confirmed(`Delete ${file.filename}?`, "Delete file"))) return;
    box.node.hidden = true;
    try {
      await tracked(() => remove(`/v1/files/${encodeURIComponent(file.id)}`));
      drop(file.id);
      settle();
      announce(`Deleted ${file.filename}.`);
      heading.focus();
    } catch (error) {
      fill(box.node, error.message);
      box.node.hidden = false;
    }
  }
}

function fileRow(file, { box, erase, announce }) {
  const actions = [];
  if (file.purpose === "fine-tune") {
    actions.push(el("a", { href: `#/new?file=${encodeURIComponent(file.id)}`, "aria-label": `New job from ${file.filename}` }, "New job"));
  }
  if (file.bytes <= MAX_DOWNLOAD_BYTES) {
    actions.push(el("button", { type: "button", "aria-label": `Download ${file.filename}`,
      onclick: () => saveFile(file.id, file.filename, box, announce) }, "Download"));
  }
  actions.push(el("button", { type: "button", "aria-label": `Delete ${file.filename}`, onclick: () => erase(file) }, "Delete"));
  const name = el("span", {}, file.filename, el("br"), el("code", { class: "note" }, file.id));
  return row([{ value: name, class: "wrap" }, file.purpose, { value: bytes(file.bytes), class: "number" },
    { value: moment(file.created_at), class: "nowrap" }, { value: el("span", { class: "row-actions" }, actions) }]);
}

/** Save a file to the user's disk. The key is sent in a header, so a plain link would not work. */
export async function saveFile(id, filename, box, announce) {
  try {
    const content = await tracked(() => download(`/v1/files/${encodeURIComponent(id)}/content`));
    const url = URL.createObjectURL(content);
    const link = el("a", { href: url, download: filename });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    announce(`Downloaded ${filename}.`);
  } catch (error) {
    fill(box.node, error.message);
    box.node.hidden = false;
  }
}
