"""The supervised text of a conversation, for tests that compare tokens with it."""

from tunesmith.data.tokenization.assistant_spans import exact_spans
from tunesmith.data.tokenization.chat_template import ChatTemplate, is_supervised


def render_with_spans(template: ChatTemplate, messages, tools=None) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and the (start, end) characters of it that are supervised: each assistant message's
    words with the token that ends its turn. Messages of weight 0 are left out. Raises TemplateFailure."""
    text, turns = exact_spans(template, messages, tools)
    return text, [(start, end) for number, start, end in turns if is_supervised(messages[number])]
