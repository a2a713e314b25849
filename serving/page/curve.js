// Curves by step as inline SVG, drawn at the size they are shown in; the same numbers stand in a table below.

import { el, fill, row, say, svg, table } from "./nodes.js";

const HEIGHT = 240;
const ROOM = { left: 52, right: 14, top: 12, bottom: 30 };
const MAX_POINTS = 600;
const MAX_ROWS = 200;

/**
 * A figure that is given new lines by `update(lines, steps)`. lines: [{name, look, points: [[step, value]], dots}], by
 * rising step; steps: of the whole run. form: writes a value; tick: one of an axis.
 */
export function curve(title, form, tick = form) {
  const plot = el("div", { class: "plot" });
  const legend = el("div", { class: "legend" });
  const reading = el("p", { class: "note reading" });
  const rows = el("tbody");
  const numbers = el("details", {}, el("summary", {}, `${title} as a table`));
  const figure = el("figure", { class: "curve" }, el("figcaption", {}, el("h3", {}, title), legend), plot, reading, numbers);
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
      const seen = lines.filter((line) => line.points.length);
      drawn = { lines: seen, steps: Math.max(1, steps, ...seen.map((line) => line.points.at(-1)[0])) };
      figure.hidden = seen.length === 0;
      if (figure.hidden) return;
      fill(legend, seen.map((line) => el("span", { class: `key ${line.look}` }, line.name)));
      say(reading, latest(seen, form));
      draw();
      tabulate(numbers, rows, title, seen, form);
    },
  };
}

function latest(lines, form) {
  return lines.map((line) => {
    const [step, value] = line.points.at(-1);
    return `${line.name}: ${form(value)} at step ${step}`;
  }).join(" · ");
}

function drawInto(plot, title, { lines, steps }, words) {
  const width = Math.floor(plot.clientWidth);
  if (!width || !lines.length) return;
  const values = lines.flatMap((line) => line.points.map(([, value]) => value)).filter(Number.isFinite);
  const ticks = niceTicks(values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity));
  const [low, high] = [ticks[0], ticks.at(-1)];
  const x = (step) => ROOM.left + (step / steps) * (width - ROOM.left - ROOM.right);
  const y = (value) => HEIGHT - ROOM.bottom - ((value - low) / (high - low)) * (HEIGHT - ROOM.bottom - ROOM.top);
  const parts = ticks.map((value) => [
    svg("line", { class: "rule", x1: ROOM.left, x2: width - ROOM.right, y1: y(value), y2: y(value) }),
    svg("text", { class: "tick", x: ROOM.left - 8, y: y(value) + 4, "text-anchor": "end" }, words.tick(value)),
  ]);
  for (const step of stepTicks(steps, width)) {
    parts.push(svg("text", { class: "tick", x: x(step), y: HEIGHT - 10, "text-anchor": "middle" }, step));
  }
  for (const line of lines) {
    const points = thinned(line.points.filter(([, value]) => Number.isFinite(value)), MAX_POINTS);
    const path = points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    parts.push(svg("polyline", { class: `line ${line.look}`, points: path }));
    if (line.dots || points.length === 1) {
      parts.push(points.map(([step, value]) => svg("circle", { class: `dot ${line.look}`, cx: x(step), cy: y(value), r: 3.5 })));
    }
  }
  const picture = svg("svg", { role: "img", "aria-label": described(title, lines, steps, words.form), width, height: HEIGHT,
    viewBox: `0 0 ${width} ${HEIGHT}`, "data-points": lines.map((line) => line.points.length).join(" ") }, parts);
  fill(plot, picture);
}

function described(title, lines, steps, form) {
  const told = lines.map((line) => {
    const [[first, from], [last, to]] = [line.points[0], line.points.at(-1)];
    return `${line.name} from ${form(from)} at step ${first} to ${form(to)} at step ${last}`;
  });
  return `${title} over ${steps} steps: ${told.join("; ")}. The numbers stand in the table below.`;
}

/** The values at the step next to the pointer. */
function read(event, plot, { lines, steps }, form, reading) {
  const box = plot.getBoundingClientRect();
  const share = (event.clientX - box.left - ROOM.left) / (box.width - ROOM.left - ROOM.right);
  const wanted = Math.max(0, Math.min(1, share)) * steps;
  const told = lines.map((line) => {
    const near = line.points.reduce((best, point) => (Math.abs(point[0] - wanted) < Math.abs(best[0] - wanted) ? point : best));
    return `${line.name}: ${form(near[1])} at step ${near[0]}`;
  });
  say(reading, told.join(" · "));
}

/** Only while it is open. Of a long run the steps that have every line, then evenly many others. */
function tabulate(numbers, rows, title, lines, form) {
  if (!numbers.open) return;
  if (!rows.isConnected) {
    const columns = ["Step", ...lines.map((line) => line.name)].map((name) => ({ name, number: true }));
    numbers.querySelector(".scroll")?.remove();
    numbers.append(table(title, columns, rows));
    numbers.dataset.lines = lines.length;
  } else if (Number(numbers.dataset.lines) !== lines.length) { // the first validation came
    rows.remove();
    tabulate(numbers, rows, title, lines, form);
    return;
  }
  const byLine = lines.map((line) => new Map(line.points));
  const all = [...new Set(lines.flatMap((line) => line.points.map(([step]) => step)))].sort((a, b) => a - b);
  const every = Math.ceil(all.length / MAX_ROWS);
  const kept = all.filter((step, place) => place % every === 0 || place === all.length - 1 ||
    byLine.some((values, number) => lines[number].dots && values.has(step)));
  fill(rows, kept.map((step) => row([{ value: step, class: "number" }, ...byLine.map((values) =>
    ({ value: values.has(step) ? form(values.get(step)) : "", class: "number" }))])));
}

/** Round numbers around low and high. */
function niceTicks(low, high) {
  if (!(high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high)))) {
    const room = Math.abs(low) * 0.1 || 1;
    [low, high] = [low - room, high + room];
  }
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const ticks = [];
  for (let place = Math.floor(low / step + 1e-9); place <= Math.ceil(high / step - 1e-9); place += 1) ticks.push(place * step);
  return ticks;
}

function stepTicks(steps, width) {
  const wanted = Math.max(2, Math.floor(width / 90));
  const every = niceTicks(0, steps)[1] >= 1 && steps > wanted ? Math.max(1, Math.round(nice(steps / wanted))) : 1;
  return Array.from({ length: Math.floor(steps / every) + 1 }, (_, place) => place * every);
}

function nice(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
}

/** At most about `most` points that look the same: the lowest and the highest of each stretch. */
function thinned(points, most) {
  if (points.length <= most) return points;
  const stretch = Math.ceil(points.length / (most / 2));
  const kept = [];
  for (let start = 0; start < points.length; start += stretch) {
    const part = points.slice(start, start + stretch);
    const low = part.reduce((a, b) => (b[1] < a[1] ? b : a));
    const high = part.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low === high ? [low] : [low, high].sort((a, b) => a[0] - b[0])));
  }
  return kept;
}
