"""The supervised text of a conversation, to compare tokens with."""

from tunesmith.data.tokenization.assistant_spans import exact_spans
from tunesmith.data.tokenization.chat_template import ChatTemplate, is_supervised


def render_with_spans(template: ChatTemplate, messages, tools=None) -> tuple[str, list[tuple[int, int]]]:
    """Return the rendered conversation and its supervised (start, end) characters: each assistant message with its
    end-of-turn token, except messages with weight 0. Raises TemplateFailure."""
    text, turns = exact_spans(template, messages, tools)
    return text, [(start, end) for number, start, end in turns if is_supervised(messages[number])]
