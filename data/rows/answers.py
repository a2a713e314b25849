"""Rows of tasks that learn from answers, as rows of the task chat, or of completion if the model has no template."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.messages import SUPERVISION_KEYS


def is_answer(message: Any) -> bool:
    """Whether a message is the assistant's."""
    return isinstance(message, dict) and message.get("role") == "assistant"


def answered_row(
    prompt: str | Sequence[Any], answer: str | Sequence[Any], shared: Mapping[str, Any], *, has_template: bool
) -> dict[str, Any]:
    """Return a row in which only the answer is trained, not earlier answers in the prompt.

    prompt, answer: strings, or lists of messages. shared: other keys of the context, such as tools. Raises Refusal for
    messages without a chat template.
    """
    if not has_template:
        if not isinstance(prompt, str) or not isinstance(answer, str):
            raise Refusal(
                "no_chat_template",
                "the row contains messages, and the model has no chat template",
                "use strings instead, or set model.chat_template",
            )
        return {"prompt": prompt, "completion": answer, **shared}
    context = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    answers = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    context = [_untrained(message) if is_answer(message) else message for message in context]
    return {"messages": [*context, *answers], **shared}


def _untrained(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in message.items() if key not in SUPERVISION_KEYS}, "weight": 0}
