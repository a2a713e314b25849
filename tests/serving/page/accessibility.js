// Checks the accessibility of the current page: {faults: [message], texts: number of text nodes checked}. Contrast as
// defined by WCAG 2.2, success criterion 1.4.3.
const faults = [];
const visible = (node) => node.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true });

function parsed(colour) {
  const numbers = colour.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
  return numbers.length === 3 ? [...numbers, 1] : numbers;
}

function over([r, g, b, alpha], [r2, g2, b2]) {
  return [r * alpha + r2 * (1 - alpha), g * alpha + g2 * (1 - alpha), b * alpha + b2 * (1 - alpha), 1];
}

function background(node) {
  const layers = [];
  for (let current = node; current; current = current.parentElement) layers.push(parsed(getComputedStyle(current).backgroundColor));
  return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
}

function luminance(colour) {
  const [r, g, b] = colour.map((value) => value / 255).map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(front, behind) {
  const [high, low] = [luminance(over(front, behind)), luminance(behind)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}

function require(colour, node, minimum, what) {
  const ratio = contrast(parsed(colour), background(node));
  if (ratio < minimum) faults.push(`${what}: contrast ${ratio.toFixed(2)}, minimum ${minimum}`);
}

let texts = 0;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim();
  const parent = walker.currentNode.parentElement;
  if (!text || ["SCRIPT", "NOSCRIPT", "OPTION"].includes(parent.tagName) || !visible(parent) || parent.closest("noscript")) continue;
  texts += 1;
  const style = getComputedStyle(parent);
  require(parent instanceof SVGElement ? style.fill : style.color, parent, 4.5, `text ${text.slice(0, 40)}`);
}
for (const control of document.querySelectorAll("input, select, textarea, button, .button")) {
  if (!visible(control)) continue;
  const style = getComputedStyle(control);
  require(style.color, control, 4.5, `control ${control.id || control.textContent}`);
  if (control.placeholder) require(getComputedStyle(control, "::placeholder").color, control, 4.5, `placeholder of ${control.id}`);
  if (control.type !== "checkbox") require(style.borderTopColor, control.parentElement, 3, `border of ${control.id || control.textContent}`);
}
for (const line of document.querySelectorAll(".line")) {
  if (visible(line)) require(getComputedStyle(line).stroke, line.closest("section"), 3, "a curve");
}

const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
for (const id of ids) if (ids.filter((other) => other === id).length > 1) faults.push(`duplicate id ${id}`);
for (const node of document.querySelectorAll("[aria-describedby], [aria-labelledby], label[for]")) {
  for (const id of (node.getAttribute("aria-describedby") ?? node.getAttribute("aria-labelledby") ?? node.htmlFor).split(" ")) {
    if (!document.getElementById(id)) faults.push(`${node.tagName} refers to the missing id ${id}`);
  }
}
for (const table of document.querySelectorAll("table")) {
  if (!table.caption?.textContent) faults.push("a table has no caption");
  if ([...table.tHead.rows[0].cells].some((cell) => cell.tagName !== "TH" || cell.scope !== "col" || !cell.textContent)) faults.push("a column has no header");
  if ([...table.tBodies[0].rows].some((row) => row.cells[0].tagName !== "TH" || row.cells[0].scope !== "row")) faults.push("a row has no header");
}
for (const image of document.querySelectorAll("svg")) {
  if (image.getAttribute("role") !== "img" || !image.getAttribute("aria-label")) faults.push("an image has no text alternative");
}
const levels = [...document.querySelectorAll("h1, h2, h3, h4")].filter(visible).map((node) => Number(node.tagName[1]));
levels.forEach((level, index) => { if (level - (levels[index - 1] ?? 0) > 1) faults.push(`heading level ${level} follows level ${levels[index - 1] ?? 0}`); });
if (levels.filter((level) => level === 1).length !== 1) faults.push("expected exactly one h1");
for (const landmark of ["header", "nav[aria-label]", "main", "[role=status][aria-live=polite]"]) {
  if (document.querySelectorAll(landmark).length !== 1) faults.push(`expected exactly one ${landmark}`);
}
if (document.documentElement.lang !== "en") faults.push("no lang attribute");
if (!/^.+ – Tunesmith$/.test(document.title)) faults.push(`the title is ${document.title}`);
return { faults, texts };
