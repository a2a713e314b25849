"""The rendered text of a conversation, its assistant turns, and what the chat template does not show of it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.tokenization.assistant_spans import TemplateFailure, Turn, exact_spans
from tunesmith.data.tokenization.chat_template import ChatTemplate, Message
from tunesmith.data.tokenization.rendering_check import Omission, require_shown


@dataclass(frozen=True, slots=True)
class Rendered:
    """opening: number of characters at the start that many rows share. is_complete: whether all contents are known to
    be in the text. omissions: what is not, if it was checked."""

    text: str
    turns: Sequence[Turn]
    opening: int
    is_complete: bool
    omissions: Sequence[Omission] = ()


def rendered(template: ChatTemplate, messages: Sequence[Message], tools: list[Any] | None) -> Rendered:
    """Render a conversation. Raises TemplateFailure."""
    layout = template.layout(messages) if tools is None else None
    if layout is not None:
        contents = [message["content"] for message in messages]
        text = layout.text(contents)
        # The layout is valid for all rows (from the template's syntax tree), or checked on the text of this row.
        if template.prints_verbatim or template.render(messages) == text:
            return Rendered(text, layout.spans(contents), layout.opening_length(contents), True)
    text, turns = exact_spans(template, messages, tools)
    return Rendered(text, turns, 0, False)


def checked_rendering(
    template: ChatTemplate, messages: Sequence[Message], tools: list[Any] | None, *, rejects: bool
) -> Rendered:
    """Render a row, and find what the template does not show of it. Raises TemplateFailure, and Refusal for omissions
    if `rejects`."""
    try:
        rendering = rendered(template, messages, tools)
    except TemplateFailure as failure:
        if rejects:  # an omission may be the reason, and says more
            with suppress(TemplateFailure):
                require_shown(template, messages, tools, failure)
        raise
    if rendering.is_complete:
        return rendering
    omissions = require_shown(template, messages, tools) if rejects else template.omissions(messages, tools)
    return replace(rendering, omissions=omissions)
