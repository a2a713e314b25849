"""Charts: ticks, smoothing, downsampling, drawing and description."""

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tunesmith.report.curves import MAX_COLUMNS, MAX_POINTS, Chart, Line, downsampled, figure, nice_ticks, smoothed
from tunesmith.report.wording import decimal

NUMBERS = st.floats(-1e12, 1e12, allow_nan=False)


def drawn(*lines: Line, num_steps: int = 10, **options) -> ElementTree.Element:
    chart = figure(Chart("Loss", "nats", lines, decimal, num_steps, **options))
    assert chart is not None
    return ElementTree.fromstring(chart)


def percents(element: ElementTree.Element, key: str) -> list[float]:
    return [float(item.attrib[key][:-1]) for item in element.iter() if item.attrib.get(key, "").endswith("%")]


@given(NUMBERS, NUMBERS)
def test_ticks_enclose_the_range_and_are_few_and_even(a, b):
    low, high = min(a, b), max(a, b)
    assume(high == low or high - low > 1e-6 * max(abs(low), abs(high)))
    ticks = nice_ticks(low, high)
    tolerance = 1e-6 * max(abs(low), abs(high), 1e-300)
    assert ticks[0] <= low + tolerance
    assert ticks[-1] >= high - tolerance
    assert 2 <= len(ticks) <= 7
    steps = [second - first for first, second in pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 5.0, -3e-9, 1e15, 1e-300])
def test_constant_values_have_an_axis(value):
    ticks = nice_ticks(value, value)
    assert ticks[0] < ticks[-1]
    assert ticks[0] <= value <= ticks[-1]


def test_smoothing_preserves_constants_and_does_not_lag():
    assert smoothed([(step, 3.0) for step in range(50)], 9) == [(step, pytest.approx(3.0)) for step in range(50)]
    line = [(step, 2.0 * step) for step in range(50)]
    assert smoothed(line, 9)[4:-4] == [(step, pytest.approx(value)) for step, value in line[4:-4]]


def test_smoothing_is_a_centered_mean():
    points = list(enumerate([1.0, 5.0, 2.0, 8.0, 3.0]))
    assert [value for _, value in smoothed(points, 3)] == pytest.approx([3, 8 / 3, 5, 13 / 3, 5.5])
    assert smoothed([(1, 4.0)], 9) == [(1, 4.0)], "values missing before the first one do not count as zero"


def test_smoothing_skips_non_finite_values():
    assert smoothed([(1, 1.0), (2, math.nan), (3, math.inf), (4, 1.0)], 5) == [(1, 1.0), (4, pytest.approx(1.0))]


@given(st.lists(NUMBERS, min_size=1, max_size=3000))
def test_downsampling_keeps_extremes_and_order_and_is_bounded(values):
    points = list(enumerate(values))
    kept = downsampled(points, 100)
    assert len(kept) <= 102
    assert kept == sorted(kept, key=lambda point: point[0])
    assert set(kept) <= set(points)
    assert {min(values), max(values)} <= {value for _, value in kept}


def test_lines_are_drawn_at_their_values():
    chart = drawn(Line("train", [(0, 0.0), (5, 1.0), (10, 2.0)], "raw"))
    path = next(item for item in chart.iter("path"))
    assert path.attrib["d"] == "M0.0 1000.0L500.0 500.0L1000.0 0.0"
    assert path.attrib["vector-effect"] == "non-scaling-stroke"


def test_description_summarizes_each_line_for_screen_readers():
    chart = drawn(Line("train", [(1, 3.0), (2, 9.0), (3, 1.0)], "raw"))
    svg = next(item for item in chart.iter("svg") if item.attrib.get("role") == "img")
    assert svg.attrib["aria-label"] == (
        "Loss, nats: train from 3.0000 at step 1 to 1.0000 at step 3, minimum 1.0000, maximum 9.0000"
    )


def test_hovering_shows_the_values_of_a_step():
    chart = drawn(Line("train", [(1, 3.0), (2, 2.0)], "raw"), Line("validation", [(2, 2.5)], "validation", dots=True))
    titles = [item.text for item in chart.iter("title")]
    assert titles == ["step 1 · train 3.0000", "step 2 · train 2.0000 · validation 2.5000"]


def test_columns_cover_the_plot_without_gaps():
    chart = drawn(Line("train", [(step, 1.0 / step) for step in range(1, 11)], "raw"))
    areas = [(float(r.attrib["x"][:-1]), float(r.attrib["width"][:-1])) for r in chart.iter("rect")]
    for (left, width), (following, _) in pairwise(areas):
        assert left + width == pytest.approx(following, abs=0.02)
    assert areas[0][0] == 0.0
    assert sum(areas[-1]) == pytest.approx(100.0, abs=0.02)


def test_non_finite_value_breaks_the_line_and_is_marked():
    chart = drawn(Line("train", [(1, 3.0), (2, 2.0), (3, math.nan), (4, 1.0), (5, 1.0)], "raw"))
    assert next(chart.iter("path")).attrib["d"].count("M") == 2
    broken = [item for item in chart.iter("circle") if item.attrib["class"] == "broken"]
    assert [item.findtext("title") for item in broken] == ["train: non-finite, step 3"]
    assert "non-finite" in "".join(chart.itertext())


def test_chart_without_finite_values_is_omitted():
    assert figure(Chart("Loss", "", [Line("train", [(1, math.nan)], "raw"), Line("x", [], "raw")], decimal, 5)) is None


def test_single_point_is_a_dot():
    chart = drawn(Line("train", [(1, 3.0)], "raw"))
    assert not list(chart.iter("path"))
    assert next(chart.iter("circle")).attrib["class"] == "dot raw"


@given(
    st.lists(st.floats(-1e9, 1e9) | st.just(math.nan) | st.just(math.inf), min_size=1, max_size=400),
    st.booleans(),
)
def test_any_values_give_a_well_formed_chart_within_its_box(values, from_zero):
    line = Line("<x>", list(enumerate(values)), "raw")
    chart = figure(Chart("<t>", "&", [line], decimal, len(values), from_zero=from_zero))
    if not any(map(math.isfinite, values)):
        assert chart is None
        return
    root = ElementTree.fromstring(chart)
    for key in ("x", "cx", "cy", "y1", "y2", "x1", "x2"):
        assert all(-0.01 <= value <= 100.01 for value in percents(root, key))


def test_chart_of_a_long_run_is_small():
    points = [(step, math.sin(step)) for step in range(1, 20_001)]
    chart = figure(
        Chart("Loss", "", [Line("a", points, "raw"), Line("b", smoothed(points, 50), "raw")], decimal, 20_000)
    )
    assert chart is not None
    assert len(chart) < 120_000
    root = ElementTree.fromstring(chart)
    assert len(list(root.iter("rect"))) <= MAX_COLUMNS + 1
    assert all(path.attrib["d"].count("L") <= MAX_POINTS + 2 for path in root.iter("path"))
