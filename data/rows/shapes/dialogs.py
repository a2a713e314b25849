"""Conversations as text, as in Anthropic's HH data set: paragraphs that begin with `Human:` or `Assistant:`."""

import re
from typing import Any

from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.messages import Message

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_ANSWER = "\n\nAssistant:"


def is_dialog(value: Any) -> bool:
    """Whether a value is the text of a conversation that begins with `Human:`."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and _ANSWER in value


def dialog_messages(text: str) -> list[Message]:
    """Convert a conversation to messages, without the spaces around each."""
    pieces = _TURN.split("\n\n" + text.strip())[1:]
    return [
        {"role": _ROLES[name], "content": content.strip()}
        for name, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def dialog_texts(better: str, worse: str) -> tuple[str, str, str]:
    """Split two conversations before their last answers: the prompt, and both answers. Raises Refusal if they differ
    before."""
    prompt, _, chosen = better.rpartition(_ANSWER)
    other, _, rejected = worse.rpartition(_ANSWER)
    if prompt != other:
        raise Refusal(
            "different_prompts", "the two conversations begin differently", "they may differ only in the last answer"
        )
    return prompt + _ANSWER, chosen, rejected
