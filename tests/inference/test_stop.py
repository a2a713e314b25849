"""Stop strings in streamed text: the result does not depend on how the text is split."""

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
def test_the_cut_does_not_depend_on_how_the_text_is_split(pieces, stops):
    text = "".join(pieces)
    expected = scan(list(text), stops)
    assert scan(pieces, stops) == expected
    assert scan([text], stops) == expected
    shown, stopped = expected
    assert text.startswith(shown)
    assert stopped == any(stop in text for stop in stops)
    if stopped:
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
    else:
        assert shown == text


@given(PIECES, st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4))
def test_only_a_possible_start_of_a_stop_string_is_held_back(pieces, stops):
    scanner, text, shown = StopScanner(stops), "", ""
    for piece in pieces:
        shown += scanner.add(piece)
        text += piece
        if scanner.stopped:
            return
        held = text[len(shown) :]
        assert text.startswith(shown)
        assert not held or any(stop.startswith(held) for stop in stops)
