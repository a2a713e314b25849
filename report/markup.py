"""HTML escaped by construction: every string that this module did not create is escaped."""

import html
from collections.abc import Iterable, Sequence

_VOID = {"meta", "br", "rect", "line", "circle", "path"}


class Html(str):
    """Markup. Every other string is text, which `tag` escapes."""

    __slots__ = ()


Content = Html | str | int | float | None | Iterable["Content"]


def markup(content: Content) -> Html:
    """Convert content to markup: Html unchanged, text escaped, None empty, iterables concatenated."""
    if content is None:
        return Html("")
    if isinstance(content, Html):
        return content
    if isinstance(content, (str, int, float)):
        return Html(html.escape(_visible(str(content))))
    return Html("".join(markup(item) for item in content))


def tag(name: str, *content: Content, **attributes: str | int | float | bool | None) -> Html:
    """Return one element.

    Attribute names lose a trailing underscore (`class_`, `for_`); other underscores become hyphens. None and False omit
    the attribute, True gives it an empty value.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        text = html.escape(_visible(str(value)), quote=True)
        written.append(f' {key}="{"" if value is True else text}"')
    opening = f"<{name}{''.join(written)}"
    if name in _VOID and not content:
        return Html(f"{opening}/>")  # inside SVG, an element that is not closed would contain everything after it
    return Html(f"{opening}>{markup(content)}</{name}>")


def table(
    caption: str,
    head: Sequence[Content],
    rows: Iterable[Sequence[Content]],
    *,
    numeric: Sequence[int] = (),
    class_: str = "",
) -> Html:
    """Return a table whose first column is the row header. numeric: indices of right-aligned number columns."""

    def cell(name: str, column: int, content: Content, **attributes: str) -> Html:
        return tag(name, content, class_="number" if column in numeric else None, **attributes)

    header = tag("tr", (cell("th", column, content, scope="col") for column, content in enumerate(head)))
    body = []
    for row in rows:
        first, *rest = row
        cells = (cell("td", column, content) for column, content in enumerate(rest, start=1))
        body.append(tag("tr", cell("th", 0, first, scope="row"), cells))
    content = (tag("caption", caption), tag("thead", header), tag("tbody", body))
    # The wrapper scrolls horizontally on narrow screens; it is focusable so that the keyboard can scroll it.
    scroller = {"class_": f"table {class_}".strip(), "tabindex": "0", "role": "region", "aria_label": caption}
    return tag("div", tag("table", content), **scroller)


def section(identifier: str, title: str, *content: Content, lead: Content = None) -> Html:
    """Return a landmark with a heading and, if given, an introductory sentence `lead`."""
    heading = tag("h2", title, id=f"{identifier}-title")
    introduction = tag("p", lead, class_="lead") if lead else None
    return tag("section", heading, introduction, content, id=identifier, aria_labelledby=f"{identifier}-title")


def prose(text: str | None) -> Html:
    """Render text with `backtick` spans as code."""
    parts = (text or "").split("`")
    if len(parts) % 2 == 0:  # an unpaired backtick is literal
        return markup(text)
    return markup(tag("code", part) if place % 2 else part for place, part in enumerate(parts))


def term(name: str, definition: str | None) -> Html:
    """Return a name with its definition as a tooltip; plain text if there is no definition."""
    return tag("abbr", name, title=definition) if definition else markup(name)


def details(summary: Content, *content: Content, open_: bool = False) -> Html:
    return tag("details", tag("summary", summary), content, open=open_)


def _visible(text: str) -> str:
    """Replace control characters and lone surrogates by visible symbols; browsers drop them or reject the file."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _mark(c) for c in text)


def _mark(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    is_bidi = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069  # would reorder the surrounding text
    is_broken = 0x7F <= code <= 0x9F or 0xD800 <= code <= 0xDFFF or code & 0xFFFE == 0xFFFE
    return "\ufffd" if is_bidi or is_broken else character
