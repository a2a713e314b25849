"""Alpaca's instruction, input and output; LLaMA-Factory adds earlier turns as `history` pairs.

As a chat, instruction and input become one user message; as a completion, the Alpaca prompt.
"""

from collections.abc import Mapping
from typing import Any

from tunesmith.data.refusal import Refusal, name_of
from tunesmith.data.rows.context import require_no_context
from tunesmith.data.rows.fields import filled, not_empty
from tunesmith.data.rows.messages import Message, read_text

# Taori et al. 2023, Stanford Alpaca: the prompt of models trained on this form.
_ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}{input}\n\n### Response:\n"
)


def alpaca_messages(value: Mapping[str, Any]) -> list[Message]:
    """Return the messages before the output. Raises Refusal."""
    question = filled(value, "instruction")
    if value.get("input"):
        question = f"{question}\n\n{read_text(value['input'], 'input')}"
    return [*_history(value), {"role": "user", "content": question}]


def alpaca_prompt(value: Mapping[str, Any]) -> str:
    """Return the prompt of models trained on this form. Raises Refusal for a context that it has no place for."""
    require_no_context(value)
    context = value.get("input")
    return _ALPACA.format(
        paired=", paired with an input that provides further context" if context else "",
        instruction=filled(value, "instruction"),
        input=f"\n\n### Input:\n{read_text(context, 'input')}" if context else "",
    )


def _history(value: Mapping[str, Any]) -> list[Message]:
    messages: list[Message] = []
    history = value.get("history") or []
    if not isinstance(history, list):
        raise Refusal("invalid_history", f"history is {name_of(history)}, not a list", 'write it as [["...", "..."]]')
    for number, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Refusal(
                "invalid_history",
                f"history[{number}] is not a pair of question and answer",
                'write it as ["...", "..."]',
            )
        for role, content in zip(("user", "assistant"), pair, strict=True):
            messages.append({"role": role, "content": not_empty(content, f"history[{number}]")})
    return messages
