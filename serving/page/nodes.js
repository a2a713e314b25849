// Creates DOM elements. Text always becomes a text node, so user input is never parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

/** el("a", {href: "#/x", class: "y", onclick: f}, "text", child, [more], null) */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

/** Replace the children of a node. Returns the node. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter(isShown).map(asNode));
  return node;
}

/** Set the text only if it differs, so that screen readers and the selection are not disturbed. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A table with a caption and column headers, in a scrollable region that is reachable by keyboard. */
export function table(caption, columns, body) {
  const head = columns.map((column) => el("th", { scope: "col", class: column.number ? "number" : null }, column.name));
  const whole = el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, head)), body);
  return el("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" }, whole);
}

/** A table row; the first cell is the row header. */
export function row(cells, attributes = {}) {
  return el("tr", attributes, cells.map((cell, index) => {
    const { value = cell, ...more } = cell !== null && typeof cell === "object" && "value" in cell ? cell : {};
    return index === 0 ? el("th", { scope: "row", ...more }, value) : el("td", more, value);
  }));
}

/** A description list of [name, value] pairs; pairs without a value are omitted. */
export function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.filter(([, value]) => isShown(value) && value !== "").map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

/** A section with its heading. */
export function section(title, ...children) {
  const id = `section-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return el("section", { "aria-labelledby": id }, el("h2", { id }, title), children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter(isShown).map(asNode));
  return node;
}

function isShown(child) {
  return child !== null && child !== undefined && child !== false;
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}
