"""The rendered text of a conversation, its assistant turns, and what the chat template does not show of it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.tokenization.assistant_spans import TemplateFailure, Turn, exact_spans
from tunesmith.data.tokenization.chat_template import ChatTemplate, Message, is_supervised
from tunesmith.data.tokenization.rendering_check import THINKING, Omission, OmittedFields, require_shown

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rendered:
    """starts: where the trained text of each turn starts, after what the template inserts. opening: number of
    characters at the start that many rows share. is_complete: whether all contents are known to be in the text.
    omissions: what is not, if it was checked."""

    text: str
    turns: Sequence[Turn]
    starts: Sequence[int]
    opening: int
    is_complete: bool
    omissions: Sequence[Omission] = ()

    def spans(self, messages: Sequence[Message]) -> list[tuple[Span, bool]]:
        """The spans at which the text may be split, and whether each is supervised: of every turn what the template
        inserts, if anything, and the rest."""
        spans: list[tuple[Span, bool]] = []
        for (number, start, stop), trained in zip(self.turns, self.starts, strict=True):
            if trained > start:
                spans.append(((start, trained), False))
            spans.append(((trained, stop), is_supervised(messages[number])))
        return spans

    def inserted(self, template: ChatTemplate, messages: Sequence[Message]) -> list[str]:
        """The empty think blocks that the template inserts into supervised turns, or before them."""
        blocks = [
            template.insertions.before(self.text, trained)
            for (number, _, _), trained in zip(self.turns, self.starts, strict=True)
            if is_supervised(messages[number])
        ]
        return [block for block in blocks if block]


def rendered(template: ChatTemplate, messages: Sequence[Message], tools: list[Any] | None) -> Rendered:
    """Render a conversation. Raises TemplateFailure."""
    layout = template.layout(messages) if tools is None else None
    if layout is not None:
        contents = [message["content"] for message in messages]
        text = layout.text(contents)
        # The layout is valid for all rows (from the template's syntax tree), or checked on the text of this row.
        if template.prints_verbatim or template.render(messages) == text:
            turns = layout.spans(contents)
            return Rendered(
                text, turns, _starts(template, messages, text, turns), layout.opening_length(contents), True
            )
    text, turns = exact_spans(template, messages, tools)
    return Rendered(text, turns, _starts(template, messages, text, turns), 0, False)


def _starts(template: ChatTemplate, messages: Sequence[Message], text: str, turns: Sequence[Turn]) -> list[int]:
    return [template.insertions.start(text, turn, messages[turn[0]]) for turn in turns]


def checked_rendering(
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: list[Any] | None,
    *,
    rejects: bool,
    rejects_earlier_thinking: bool = False,
) -> Rendered:
    """Render a row, and find what the template does not show of it. Raises TemplateFailure, and Refusal for omissions
    if `rejects`, and for thinking of earlier turns if `rejects_earlier_thinking`."""
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
    earlier = [omission for omission in omissions if omission.by_design and omission.kind == THINKING]
    if earlier and rejects_earlier_thinking:
        remedy = "set data.earlier_thinking to split (a row for each turn) or to template (train the turn without it)"
        raise OmittedFields(template.name, earlier, remedy)
    return replace(rendering, omissions=omissions)
