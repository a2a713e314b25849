"""How programs of Tunesmith print to a terminal."""

from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

PLAIN_WIDTH = 140
"""Columns if the output is not a terminal."""
_CONTROLS = [code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"]
_BIDIRECTIONAL = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES = {code: f"\\x{code:02x}" for code in _CONTROLS} | {code: f"\\u{code:04x}" for code in _BIDIRECTIONAL}


def printable(text: str) -> str:
    """Text with control characters as escapes: a terminal would move its cursor or reorder what stands around them."""
    return text if text.isprintable() else text.translate(_ESCAPES)


class TextConsole(Console):
    """A console that prints every text literally, in tables too.

    Paths, row contents and model output may contain what rich would interpret: `[bold]` as markup, `:100:` as an emoji,
    numbers to highlight; or what a terminal would: escape sequences. Styles are given as arguments.
    """

    def __init__(self, file: TextIO | None = None, **options: Any) -> None:
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as it is; rich calls this for everything that is printed as a string."""
        return super().render_str(printable(text), **options)


def console_for(stream: TextIO | None = None) -> TextConsole:
    """A console that does not limit tables to 80 columns if the output is a file."""
    console = TextConsole(stream)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console
