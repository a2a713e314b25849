"""The tokens that a chat template puts around messages, found by comparing renderings of short conversations.

What follows an answer is the end of its turn and, before another question, the header of that question. A template that
always appends the generation prompt prints the header of the next answer instead. The end of the turn is what both have
in common, without the token that begins a header.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_SPACES = " \t\r\n\u2581\u0120\u010a"


def is_ordinary(token: str) -> bool:
    """Whether an added token is whitespace, possibly as vocabularies represent it: ordinary text, also in templates."""
    return not token.strip(_SPACES).strip()


Render = Callable[[Sequence[dict[str, Any]]], str | None]
"""Renders a conversation without a generation prompt; None if the template cannot."""


def _content(number: int) -> str:
    """A content that occurs in no template and contains no token."""
    return f"\ufdd3{number}\ufdd4"


def conversation(*roles: str) -> list[dict[str, Any]]:
    """A conversation with placeholder contents, numbered from 0."""
    return [{"role": role, "content": _content(number)} for number, role in enumerate(roles)]


def gaps(render: Render, *roles: str) -> list[str] | None:
    """The texts before, between and after the contents of a conversation; None if they cannot be located."""
    text = render(conversation(*roles))
    if text is None:
        return None
    parts = []
    for number in range(len(roles)):
        before, content, text = text.partition(_content(number))
        if not content:
            return None
        parts.append(before)
    return [*parts, text]


def closing_tokens(render: Render, tokens: re.Pattern[str]) -> tuple[str, ...] | None:
    """The tokens that end an assistant turn, that of the last turn first; usually one. Empty if no token does. None if
    the template cannot render a question and its answer. tokens: pattern of the tokenizer's added tokens."""
    alone, followed = gaps(render, "user", "assistant"), gaps(render, "user", "assistant", "user")
    if alone is None:
        return None
    last = alone[-1].rstrip()
    at_end = [match[0] for match in tokens.finditer(last) if match.end() == len(last)]
    if followed is None or followed[2].startswith(last):
        return tuple(at_end)
    following, openers = followed[2], opening_tokens(render, tokens)
    shared = next((n for n, (a, b) in enumerate(zip(last, following, strict=False)) if a != b), len(following))
    common = [match[0] for match in tokens.finditer(last) if match.end() <= shared]
    if common:  # after it come the headers of two different messages: the template appends the generation prompt
        ends = next((n for n, token in enumerate(common) if n and token in openers), len(common))
        return (common[ends - 1],)
    # The end of the last turn differs from that of the others.
    first = [match[0] for match in tokens.finditer(following) if match[0] not in openers][:1]
    return tuple(dict.fromkeys([*at_end, *first]))


def opening_tokens(render: Render, tokens: re.Pattern[str]) -> frozenset[str]:
    """The tokens that begin the conversation, up to the first that occurs again: it begins a header."""
    openers: set[str] = set()
    for roles in (("system", "user", "assistant", "user"), ("user", "assistant", "user")):
        if (parts := gaps(render, *roles)) is not None:
            again = {token for part in parts[1:] for token in tokens.findall(part)}
            first = tokens.findall(parts[0])
            stop = next((number for number, token in enumerate(first) if token in again), len(first))
            openers.update(first[: stop + 1])
    return frozenset(openers)


_SHAPES = (
    ("user", "assistant", "user", "assistant"),
    ("system", "user", "assistant", "user", "assistant"),
    ("developer", "user", "assistant"),
    ("user", "assistant", "tool", "assistant"),
)


def framing_tokens(render: Render, tokens: re.Pattern[str], closing: Iterable[str]) -> frozenset[str]:
    """The tokens with which the template begins and ends messages of all roles, but not those with which it begins
    thoughts or calls inside an answer. closing: the tokens that end an assistant turn."""
    rendered = [(roles, parts) for roles in _SHAPES if (parts := gaps(render, *roles)) is not None]
    openers = opening_tokens(render, tokens)
    framing = set(openers) | set(closing)
    for roles, parts in rendered:
        for role, part in zip(roles, parts, strict=False):
            if role in ("system", "user"):
                framing.update(tokens.findall(part))
    named: set[str] = set()
    for roles, parts in rendered:
        for role, part in zip(roles, parts, strict=False):
            inside = tokens.findall(part)
            if role not in ("system", "user") and not openers & set(inside):
                # No token that begins every header: the first token that is not the end of a message names the role.
                named.update([token for token in inside if token not in framing][:1])
    return frozenset(framing | named)


def printed_tokens(render: Render, tokens: re.Pattern[str]) -> frozenset[str]:
    """All tokens that the template prints around the contents of plain conversations."""
    parts = (gaps(render, *roles) or () for roles in _SHAPES)
    return frozenset(token for texts in parts for text in texts for token in tokens.findall(text))
