"""Formatting of numbers for users."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.report import wording


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [
        (wording.count, 1234567, "1,234,567"),
        (wording.count, -4, "−4"),
        (wording.count, None, "–"),
        (wording.count, "inf", "inf"),
        (wording.decimal, 1.23456, "1.2346"),
        (wording.decimal, -0.5, "−0.5000"),
        (wording.decimal, 0, "0.0000"),
        (wording.decimal, 1e-9, "1e-9"),
        (wording.decimal, "nan", "NaN"),
        (wording.decimal, "-inf", "−∞"),
        (wording.decimal, True, "–"),
        (wording.decimal, "text", "–"),
        (wording.significant, 0.0002, "0.0002"),
        (wording.significant, 6.66e-05, "6.66e-5"),
        (wording.significant, 831.4, "831"),
        (wording.significant, 123456, "123,456"),
        (wording.significant, 2.5, "2.5"),
        (wording.significant, 2.5e9, "2.5e9"),
        (wording.change, 0.5, "+0.5000"),
        (wording.change, 0.0, "0.0000"),
        (wording.percent, 0.3333, "33.3%"),
        (wording.percent, math.nan, "–"),
        (wording.size, 0, "0 bytes"),
        (wording.size, 1536, "1.5 KiB"),
        (wording.size, 3 << 30, "3.0 GiB"),
        (wording.size, 5 << 40, "5.0 TiB"),
        (wording.duration, 0.05, "50 ms"),
        (wording.duration, 0.9996, "1.0 s"),
        (wording.duration, 59.94, "59.9 s"),
        (wording.duration, 59.96, "1 min 00 s"),
        (wording.duration, 3600, "1 h 00 min"),
        (wording.duration, 400000, "4 d 15 h"),
        (wording.moment, 0, "1970-01-01 00:00:00 UTC"),
    ],
)
def test_numbers_are_formatted(form, value, expected):
    assert form(value) == expected


def test_plural_agrees_with_the_count():
    assert wording.plural(1, "row") == "1 row"
    assert wording.plural(0, "row") == "0 rows"
    assert wording.plural(2, "loss", "losses") == "2 losses"


@given(st.one_of(st.floats(), st.integers(), st.text(max_size=8), st.none(), st.booleans()))
def test_any_logged_value_can_be_formatted(value):
    for form in (wording.count, wording.decimal, wording.significant, wording.change, wording.percent, wording.size):
        assert isinstance(form(value), str)
    assert isinstance(wording.duration(value), str)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-30, max_value=1e30))
def test_significant_preserves_the_value(value):
    assert float(wording.significant(value, 6).replace(",", "")) == pytest.approx(value, rel=1e-5)
