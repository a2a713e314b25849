"""Stop strings in a text that arrives in pieces: however it is divided, the result is one."""

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.inference.stop import StopScanner

LETTERS = st.text("ab\n", max_size=12)
PIECES = st.lists(LETTERS, max_size=12)


def scan(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    shown = ""
    for piece in pieces:
        shown += scanner.add(piece)
        assert not any(stop in shown for stop in stops)
        if scanner.stopped:
            return shown, True
    return shown + scanner.finish(), False


@given(PIECES, st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4))
def test_a_stop_string_cuts_at_one_place_however_the_text_is_divided(pieces, stops):
    text = "".join(pieces)
    letters = scan(list(text), stops)
    assert scan(pieces, stops) == letters
    assert scan([text], stops) == letters
    shown, stopped = letters
    assert text.startswith(shown)
    assert stopped == any(stop in text for stop in stops)
    if stopped:
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
    else:
        assert shown == text


@given(PIECES, st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4))
def test_nothing_shown_is_the_beginning_of_a_stop_string_that_comes(pieces, stops):
    scanner, text, shown = StopScanner(stops), "", ""
    for piece in pieces:
        shown += scanner.add(piece)
        text += piece
        if scanner.stopped:
            return
        held = text[len(shown) :]
        assert text.startswith(shown)
        assert not held or any(stop.startswith(held) for stop in stops)  # and no more is held back than must be
