// Line charts over steps as inline SVG, drawn at their displayed size, with the same values in a table below.

import { count } from "./format.js";
import { el, fill, row, say, svg, table } from "./nodes.js";
import { term } from "./terms.js";

const HEIGHT = 240;
const MARGIN = { left: 52, right: 14, top: 12, bottom: 30 };
const MAX_POINTS = 600;
const MAX_ROWS = 200;

/**
 * Create a chart: {node, update(lines, steps)}. lines: [{name, look, points: [[step, value]], dots}], points by
 * ascending step; steps: total of the run. form: formats a value; tick: formats a tick label.
 */
export function curve(title, form, tick = form) {
  const plot = el("div", { class: "plot" });
  const legend = el("div", { class: "legend" });
  const reading = el("p", { class: "note reading" });
  const rows = el("tbody");
  const numbers = el("details", {}, el("summary", {}, `${title} as a table`));
  const figure = el("figure", { class: "curve" }, el("figcaption", {}, el("h3", {}, term(title)), legend), plot, reading, numbers);
  let drawn = { lines: [], steps: 1 };
  const draw = () => drawInto(plot, title, drawn, { form, tick });
  new ResizeObserver(draw).observe(plot);
  numbers.addEventListener("toggle", () => tabulate(numbers, rows, title, drawn.lines, form));
  plot.addEventListener("pointermove", (event) => read(event, plot, drawn, form, reading));
  plot.addEventListener("pointerleave", () => say(reading, latest(drawn.lines, form)));
  figure.hidden = true;

  return {
    node: figure,
    update(lines, steps) {
      const shown = lines.filter((line) => line.points.length);
      drawn = { lines: shown, steps: Math.max(1, steps, ...shown.map((line) => line.points.at(-1)[0])) };
      figure.hidden = shown.length === 0;
      if (figure.hidden) return;
      fill(legend, shown.map((line) => el("span", { class: `key ${line.look}` }, line.name)));
      say(reading, latest(shown, form));
      draw();
      tabulate(numbers, rows, title, shown, form);
    },
  };
}

function latest(lines, form) {
  return lines.map((line) => {
    const [step, value] = line.points.at(-1);
    return `${line.name}: ${form(value)} at step ${count(step)}`;
  }).join(" · ");
}

function drawInto(plot, title, { lines, steps }, { form, tick }) {
  const width = Math.floor(plot.clientWidth);
  if (!width || !lines.length) return;
  const values = lines.flatMap((line) => line.points.map(([, value]) => value)).filter(Number.isFinite);
  const ticks = niceTicks(values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity));
  const [low, high] = [ticks[0], ticks.at(-1)];
  const x = (step) => MARGIN.left + (step / steps) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => HEIGHT - MARGIN.bottom - ((value - low) / (high - low)) * (HEIGHT - MARGIN.bottom - MARGIN.top);
  const parts = ticks.map((value) => [
    svg("line", { class: "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
    svg("text", { class: "tick", x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, tick(value)),
  ]);
  for (const step of stepTicks(steps, width)) {
    parts.push(svg("text", { class: "tick", x: x(step), y: HEIGHT - 10, "text-anchor": "middle" }, count(step)));
  }
  for (const line of lines) {
    const points = thinned(line.points.filter(([, value]) => Number.isFinite(value)), MAX_POINTS);
    const path = points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    parts.push(svg("polyline", { class: `line ${line.look}`, points: path }));
    if (line.dots || points.length === 1) {
      parts.push(points.map(([step, value]) => svg("circle", { class: `dot ${line.look}`, cx: x(step), cy: y(value), r: 3.5 })));
    }
  }
  const chart = svg("svg", { role: "img", "aria-label": summary(title, lines, steps, form), width, height: HEIGHT,
    viewBox: `0 0 ${width} ${HEIGHT}`, "data-points": lines.map((line) => line.points.length).join(" ") }, parts);
  fill(plot, chart);
}

function summary(title, lines, steps, form) {
  const ranges = lines.map((line) => {
    const [[first, from], [last, to]] = [line.points[0], line.points.at(-1)];
    return `${line.name} from ${form(from)} at step ${count(first)} to ${form(to)} at step ${count(last)}`;
  });
  return `${title} over ${count(steps)} steps: ${ranges.join("; ")}. The table below lists the values.`;
}

/** Show the values at the step nearest to the pointer. */
function read(event, plot, { lines, steps }, form, reading) {
  const box = plot.getBoundingClientRect();
  const fraction = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
  const target = Math.max(0, Math.min(1, fraction)) * steps;
  const values = lines.map((line) => {
    const nearest = line.points.reduce((best, point) => (Math.abs(point[0] - target) < Math.abs(best[0] - target) ? point : best));
    return `${line.name}: ${form(nearest[1])} at step ${count(nearest[0])}`;
  });
  say(reading, values.join(" · "));
}

/** Fill the table while it is open. A long run shows every validation step and an even sample of the others. */
function tabulate(numbers, rows, title, lines, form) {
  if (!numbers.open) return;
  if (!rows.isConnected) {
    const columns = ["Step", ...lines.map((line) => line.name)].map((name) => ({ name, number: true }));
    numbers.querySelector(".scroll")?.remove();
    numbers.append(table(title, columns, rows));
    numbers.dataset.lines = lines.length;
  } else if (Number(numbers.dataset.lines) !== lines.length) { // the first validation step arrived
    rows.remove();
    tabulate(numbers, rows, title, lines, form);
    return;
  }
  const byLine = lines.map((line) => new Map(line.points));
  const all = [...new Set(lines.flatMap((line) => line.points.map(([step]) => step)))].sort((a, b) => a - b);
  const every = Math.ceil(all.length / MAX_ROWS);
  const kept = all.filter((step, index) => index % every === 0 || index === all.length - 1 ||
    byLine.some((values, number) => lines[number].dots && values.has(step)));
  fill(rows, kept.map((step) => row([{ value: count(step), class: "number" }, ...byLine.map((values) =>
    ({ value: values.has(step) ? form(values.get(step)) : "", class: "number" }))])));
}

/** Round tick values that span low to high. */
function niceTicks(low, high) {
  if (!(high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high)))) {
    const padding = Math.abs(low) * 0.1 || 1;
    [low, high] = [low - padding, high + padding];
  }
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const ticks = [];
  for (let i = Math.floor(low / step + 1e-9); i <= Math.ceil(high / step - 1e-9); i += 1) ticks.push(i * step);
  return ticks;
}

function stepTicks(steps, width) {
  const most = Math.max(2, Math.floor(width / 90));
  const every = niceTicks(0, steps)[1] >= 1 && steps > most ? Math.max(1, Math.round(nice(steps / most))) : 1;
  return Array.from({ length: Math.floor(steps / every) + 1 }, (_, index) => index * every);
}

function nice(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
}

/** Downsample to about `most` points: the minimum and the maximum of each bin. */
function thinned(points, most) {
  if (points.length <= most) return points;
  const bin = Math.ceil(points.length / (most / 2));
  const kept = [];
  for (let start = 0; start < points.length; start += bin) {
    const part = points.slice(start, start + bin);
    const low = part.reduce((a, b) => (b[1] < a[1] ? b : a));
    const high = part.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low === high ? [low] : [low, high].sort((a, b) => a[0] - b[0])));
  }
  return kept;
}
