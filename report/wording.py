"""Formatting of numbers for users: units, digits and signs. A missing number is a dash."""

import math
import time
from collections.abc import Mapping
from typing import Any

NONE = "–"
MINUS = "−"


def number_of(value: Any) -> float | None:
    """Return a number of the event log as float (non-finite ones are logged as strings); None if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def finite(value: Any) -> float | None:
    number = number_of(value)
    return number if number is not None and math.isfinite(number) else None


def whole(value: Any) -> int:
    """Return a number of the event log as int; 0 if it is not a finite number."""
    number = finite(value)
    return 0 if number is None else int(number)


def count(value: Any) -> str:
    """An integer with commas between thousands: 1,235."""
    number = number_of(value)
    if number is None or not math.isfinite(number):
        return NONE if number is None else str(value)
    return _signed(f"{round(number):,}")


def omissions(rows_by_kind: Mapping[str, Any]) -> str:
    """What the chat template omits, as one clause: thinking in 3 rows, tools in 1 row."""
    return ", ".join(f"{kind} in {plural(whole(number), 'row')}" for kind, number in rows_by_kind.items())


def decimal(value: Any, digits: int = 4) -> str:
    """A number with a fixed number of decimals; very small and very large ones in scientific notation."""
    number = number_of(value)
    if number is None:
        return NONE
    if not math.isfinite(number):
        return {"inf": "∞", "-inf": f"{MINUS}∞"}.get(str(number), "NaN")
    if number and (abs(number) < 0.5 * 10**-digits or abs(number) >= 1e7):
        return significant(number, 3)
    return _signed(f"{number:.{digits}f}")


def significant(value: Any, digits: int = 3) -> str:
    """A number with `digits` significant digits; integer digits are never rounded: 0.000183, 12.3, 13,464, 4.1e9."""
    number = number_of(value)
    if number is None:
        return NONE
    if not math.isfinite(number):
        return decimal(number)
    if number and not 1e-4 <= abs(number) < 1e6:
        mantissa, _, exponent = f"{number:.{digits - 1}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return _signed(f"{mantissa}e{int(exponent)}")
    if abs(number) >= 10 ** (digits - 1):
        return count(number)
    return _signed(f"{number:.{digits}g}")


def change(value: Any, digits: int = 4) -> str:
    """A difference, with its sign."""
    text = decimal(value, digits)
    number = number_of(value)
    return f"+{text}" if number is not None and number > 0 else text


def percent(value: Any, digits: int = 1) -> str:
    """A fraction of one as a percentage: 13.6%."""
    number = finite(value)
    return NONE if number is None else _signed(f"{100 * number:.{digits}f}%")


def size(num_bytes: Any) -> str:
    """Bytes in binary units."""
    number = finite(num_bytes)
    if number is None:
        return NONE
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def duration(seconds: Any) -> str:
    number = finite(seconds)
    if number is None:
        return NONE
    if number < 0.9995:
        return f"{1000 * number:.0f} ms"
    if number < 59.95:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def moment(seconds: Any) -> str:
    """Seconds since the epoch as a UTC date and time."""
    number = finite(seconds)
    try:
        return NONE if number is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(number))
    except (OverflowError, ValueError, OSError):  # outside the range of the system's calendar
        return NONE


def plural(amount: int, noun: str, many: str | None = None) -> str:
    return f"{count(amount)} {noun if amount == 1 else many or noun + 's'}"


def _signed(text: str) -> str:
    return MINUS + text[1:] if text.startswith("-") else text
