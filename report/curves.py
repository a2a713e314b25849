"""Line charts as inline SVG, without scripts. They scale with the page while their text keeps its size.

The SVG box is the plot area and coordinates are percentages of it; labels are outside the box (overflow: visible), in
the padding of the figure. Only the lines are in a nested SVG of 1000 by 1000 units that scales, with non-scaling
strokes. The pointer hovers over a column of the plot; style.css then shows its marker and values.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from tunesmith.report.markup import Html, markup, tag, term
from tunesmith.report.wording import count, significant

UNITS = 1000
MAX_POINTS = 500
"""Lines with more points are downsampled to the minimum and maximum of each bin, so that no spike is lost."""
MAX_COLUMNS = 120

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """points: (step, value) by increasing step; a non-finite value leaves a gap and is marked at the top.

    look: CSS class with the color. dots: also draw every point.
    """

    name: str
    points: Sequence[Point]
    look: str
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """One figure.

    form: formats a value. marks: (step, label) of vertical lines. definition: tooltip of the title.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    form: Callable[[float], str]
    num_steps: int
    from_zero: bool = False
    wide: bool = False
    marks: Sequence[tuple[float, str]] = field(default=())
    definition: str | None = None


def smoothed(points: Sequence[Point], span: int) -> list[Point]:
    """Return the centered moving average over `span` points, which does not lag.

    At both ends the window is truncated. Non-finite values are skipped.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    sums = [0.0, *accumulate(value for _, value in finite)]
    result = []
    for index, (step, _) in enumerate(finite):
        first, end = max(0, index - span // 2), min(len(finite), index + span // 2 + 1)
        result.append((step, (sums[end] - sums[first]) / (end - first)))
    return result


def figure(chart: Chart) -> Html | None:
    """Return the chart as a figure; None if no line has a finite value."""
    values = [value for line in chart.lines for _, value in line.points if math.isfinite(value)]
    if not values:
        return None
    ticks = nice_ticks(min(0.0, *values) if chart.from_zero else min(values), max(values))
    low, high = min(ticks[0], *values), max(ticks[-1], *values)

    def across(step: float) -> float:
        return step / max(1, chart.num_steps)

    def down(value: float) -> float:
        return 1.0 - (value - low) / (high - low)

    plot = tag(
        "svg",
        _axes(chart, ticks, across, down),
        (_stroke(line, across, down) for line in chart.lines),
        (_dots(line, across, down) for line in chart.lines if line.dots or len(line.points) == 1),
        (_non_finite(line, across) for line in chart.lines),
        _columns(chart, across, down),
        role="img",
        aria_label=_description(chart),
    )
    looks = [(line.look, line.name) for line in chart.lines]
    if any(not math.isfinite(value) for line in chart.lines for _, value in line.points):
        looks.append(("lost", "non-finite"))
    legend = [tag("span", tag("i", class_=look), name, class_="key") for look, name in looks]
    caption = tag(
        "figcaption", tag("b", term(chart.title, chart.definition)), " ", tag("span", chart.unit, class_="unit")
    )
    head = tag("div", caption, tag("div", legend, class_="legend") if len(legend) > 1 else None, class_="head")
    return tag("figure", head, tag("div", plot, class_="plot"), class_="chart wide" if chart.wide else "chart")


def nice_ticks(low: float, high: float, num_intervals: int = 4) -> list[float]:
    """Return about `num_intervals` + 1 evenly spaced round numbers that enclose low to high.

    Their distance is 1, 2, 2.5 or 5 times a power of ten.
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / num_intervals
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def downsampled(points: Sequence[Point], max_points: int) -> list[Point]:
    """Return about `max_points` points that look the same: the minimum and the maximum of each bin, in order."""
    if len(points) <= max_points:
        return list(points)
    bin_size = math.ceil(len(points) / (max_points // 2))
    kept = []
    for start in range(0, len(points), bin_size):
        part = points[start : start + bin_size]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def _description(chart: Chart) -> str:
    """Text for screen readers: start, end, minimum and maximum of each line."""
    parts = []
    for line in chart.lines:
        points = [(step, value) for step, value in line.points if math.isfinite(value)]
        if points:
            (first, start), (last, end) = points[0], points[-1]
            low, high = min(v for _, v in points), max(v for _, v in points)
            parts.append(
                f"{line.name} from {chart.form(start)} at step {count(first)} to {chart.form(end)} at step "
                f"{count(last)}, minimum {chart.form(low)}, maximum {chart.form(high)}"
            )
    return f"{chart.title}, {chart.unit}: " + "; ".join(parts)


def _axes(chart: Chart, ticks: list[float], across: Callable, down: Callable) -> Html:
    drawn = []
    for value, label in zip(ticks, _tick_labels(ticks), strict=True):
        y = _percent(down(value))
        drawn.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        drawn.append(tag("text", label, x="-8", y=y, dy="0.35em", class_="tick y"))
    for step in _step_ticks(chart.num_steps):
        x = _percent(across(step))
        drawn.append(tag("line", x1=x, x2=x, y1="100%", y2="100%", class_="grid stub"))
        drawn.append(tag("text", count(step), x=x, y="100%", dy="18", class_="tick x"))
    for step, label in chart.marks:
        x = _percent(across(step))
        drawn.append(tag("g", tag("title", label), tag("line", x1=x, x2=x, y1="0", y2="100%"), class_="mark"))
    return markup(drawn)


def _step_ticks(num_steps: int) -> list[int]:
    """Round steps starting at 0, and the last step."""
    ticks = (round(tick) for tick in nice_ticks(0, max(1, num_steps), 5) if tick == round(tick))
    return [tick for tick in ticks if tick <= 0.93 * num_steps] + [max(1, num_steps)]


def _tick_labels(ticks: list[float]) -> list[str]:
    """Labels in one format: very small and very large values share a power of ten."""
    largest = max(map(abs, ticks))
    if 1e-3 <= largest < 1e6:
        return [significant(tick, 4) for tick in ticks]
    power = math.floor(math.log10(largest) + 1e-9) if largest else 0
    return [f"{significant(tick / 10.0**power, 3)}e{power}" if tick else "0" for tick in ticks]


def _stroke(line: Line, across: Callable, down: Callable) -> Html | None:
    """The line as one path, with gaps at non-finite values."""
    parts, pen = [], "M"
    for step, value in _downsampled_with_gaps(line.points):
        if not math.isfinite(value):
            pen = "M"
            continue
        parts.append(f"{pen}{UNITS * across(step):.1f} {UNITS * down(value):.1f}")
        pen = "L"
    if len(parts) < 2:
        return None
    box = f"0 0 {UNITS} {UNITS}"
    path = tag("path", d="".join(parts), class_=f"line {line.look}", vector_effect="non-scaling-stroke")
    return tag("svg", path, viewBox=box, preserveAspectRatio="none", width="100%", height="100%", class_="stretched")


def _downsampled_with_gaps(points: Sequence[Point]) -> list[Point]:
    finite = [point for point in points if math.isfinite(point[1])]
    gaps = [point for point in points if not math.isfinite(point[1])]
    return sorted(downsampled(finite, MAX_POINTS) + gaps, key=lambda point: point[0])


def _dots(line: Line, across: Callable, down: Callable) -> list[Html]:
    points = [(step, value) for step, value in line.points if math.isfinite(value)]
    radius = "3.5" if len(points) <= 60 else "2"
    return [
        tag("circle", cx=_percent(across(s)), cy=_percent(down(v)), r=radius, class_=f"dot {line.look}")
        for s, v in points
    ]


def _non_finite(line: Line, across: Callable) -> list[Html]:
    """A marker at the top for every non-finite value."""
    steps = [step for step, value in line.points if not math.isfinite(value)]
    return [
        tag(
            "circle",
            tag("title", f"{line.name}: non-finite, step {count(step)}"),
            cx=_percent(across(step)),
            cy="0",
            r="4",
            class_="broken",
        )
        for step in steps[:MAX_COLUMNS]
    ]


def _columns(chart: Chart, across: Callable, down: Callable) -> list[Html]:
    """Invisible columns that show the step and the value of every line under the pointer."""
    values: dict[float, list[tuple[Line, float]]] = {}
    for line in chart.lines:
        for step, value in line.points:
            values.setdefault(step, []).append((line, value))
    steps = sorted(values)
    every = math.ceil(len(steps) / MAX_COLUMNS)
    rare = {step for line in chart.lines if line.dots for step, _ in line.points}
    shown = [step for index, step in enumerate(steps) if index % every == 0 or step in rare or step == steps[-1]]
    edges = [0.0, *(across((a + b) / 2) for a, b in pairwise(shown)), 1.0]
    drawn = []
    for step, (left, right) in zip(shown, pairwise(edges), strict=True):
        label = " · ".join(f"{line.name} {chart.form(value)}" for line, value in values[step])
        label = f"step {count(step)} · {label}"
        x = _percent(across(step))
        dots = [
            tag("circle", cx=x, cy=_percent(down(value)), r="4", class_=f"dot {line.look}")
            for line, value in values[step]
            if math.isfinite(value)
        ]
        area = tag("rect", x=_percent(left), width=_percent(right - left), y="0", height="100%")
        on_hover = (tag("line", x1=x, x2=x, y1="0", y2="100%"), dots, tag("text", label, x="100%", y="-7"))
        drawn.append(tag("g", tag("title", label), area, on_hover, class_="at"))
    return drawn


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
