"""The fixed text of a chat template around the contents of messages, determined once for each sequence of roles.

It is used for a row only if fixed text and contents together equal the rendered text, character for character, or if
the template's syntax tree shows that they always do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tunesmith.data.tokenization.assistant_spans import (
    Renderer,
    TemplateFailure,
    Turn,
    assistant_messages,
    continues_prompt,
    locate_turn,
    marked_turns,
    require_order,
    rewritten,
)

_MANY_TURNS = 32
"""Turns of a conversation that are each located by rendering: the cost of all grows with the square of their number."""


@dataclass(frozen=True)
class Layout:
    """The fixed text of a sequence of roles. literals: the text before, between and after n contents, n + 1 of them.
    turns: the assistant's, as (message index, start, end): start within the literal before its content, end within the
    one after it. opening: (literal index, offset) of a special token; the text up to it is the same in many rows: the
    template's start, and a system message."""

    literals: tuple[str, ...]
    turns: tuple[Turn, ...]
    opening: tuple[int, int]

    def text(self, contents: Sequence[str]) -> str:
        parts = [""] * (2 * len(contents) + 1)
        parts[0::2], parts[1::2] = self.literals, contents
        return "".join(parts)

    def spans(self, contents: Sequence[str]) -> list[Turn]:
        begins, position = [], 0
        for literal, content in zip(self.literals, [*contents, ""], strict=True):
            begins.append(position)
            position += len(literal) + len(content)
        return [(number, begins[number] + start, begins[number + 1] + end) for number, start, end in self.turns]

    def opening_length(self, contents: Sequence[str]) -> int:
        """Number of characters of the opening; 0 if the text cannot be cut there."""
        number, place = self.opening
        return place if number == 0 else len(self.literals[0]) + len(contents[0]) + place


def layout_of(template: Renderer, roles: tuple[str, ...]) -> Layout | None:
    """Determine the layout of a sequence of roles from a conversation with placeholder contents; None if impossible,
    or if the template's generation prompt is not part of the text.

    Every turn that is located costs some renderings of the whole conversation. After the first `_MANY_TURNS`, a turn
    between the same texts and roles as an earlier one is taken to start and end at the same places in them.
    """
    contents = [f"\ufdd3{number}\ufdd4" for number in range(len(roles))]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    try:
        text = template.render(messages)
        if (literals := _around(text, contents)) is None:
            return None
        begins = [0, *accumulate(len(a) + len(b) for a, b in zip(literals, contents, strict=False))]
        turns = _turns_between(template, messages, text, literals, begins)
    except TemplateFailure:
        return None
    inner = [(number, start - begins[number], end - begins[number + 1]) for number, start, end in turns]
    for number, start, end in inner:
        if not 0 <= start <= len(literals[number]) or not 0 <= end <= len(literals[number + 1]):
            return None
    return Layout(tuple(literals), tuple(inner), _opening(template, literals, roles, inner))


def _around(text: str, contents: Sequence[str]) -> list[str] | None:
    """Return the text before, between and after contents; None if they are not in it once and in order."""
    literals, position = [], 0
    for content in contents:
        if (place := text.find(content, position)) < 0:
            return None
        literals.append(text[position:place])
        position = place + len(content)
    literals.append(text[position:])
    return None if any("\ufdd3" in literal for literal in literals) else literals


def _turns_between(
    template: Renderer, messages: Sequence[Any], text: str, literals: Sequence[str], begins: Sequence[int]
) -> list[Turn]:
    """Return the turns of the conversation with placeholders. Raises TemplateFailure."""
    numbers = assistant_messages(messages)
    marked = marked_turns(template, messages, None, text, numbers)
    turns: list[Turn] = []
    seen: dict[Any, tuple[int, int]] = {}
    for place, i in enumerate(numbers):
        roles = tuple(message["role"] for message in messages[max(i - 1, 0) : i + 2])
        around = roles, literals[i], literals[i + 1]
        if place >= _MANY_TURNS and around in seen and marked is None:
            start, end = seen[around][0] + begins[i], seen[around][1] + begins[i + 1]
        else:
            if marked is not None:
                _, start, end = marked[place]
            else:
                _, start, end = locate_turn(template, messages, None, i, text, turns[-1][2] if turns else 0)
            if (place < _MANY_TURNS or around not in seen) and not continues_prompt(template, messages, None, i):
                raise rewritten(i)
            seen[around] = start - begins[i], end - begins[i + 1]
        turns.append((i, start, end))
    require_order(turns)
    return turns


def _opening(template: Renderer, literals: list[str], roles: tuple[str, ...], turns: list[Turn]) -> tuple[int, int]:
    """Return where the opening ends: at the last special token before the first message that varies between rows, and
    before all trained text."""
    starts = {number: start for number, start, _ in turns}
    for number in (1, 0) if roles[0] in ("system", "developer") and len(roles) > 1 else (0,):
        limit = starts.get(number, len(literals[number]))
        places = [m.start() for m in template.cut_pattern.finditer(literals[number]) if m.start() <= limit]
        if places:
            return number, places[-1]
    return 0, 0
