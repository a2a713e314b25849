"""The parts of a row, prompt and answers: each is a text, a message, or a list of messages or turns."""

from collections.abc import Mapping
from typing import Any

from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.answers import is_answer
from tunesmith.data.rows.fields import not_empty, require_key
from tunesmith.data.rows.messages import Message, check_supervision, read_message
from tunesmith.data.rows.shapes.alpaca import alpaca_messages, alpaca_prompt
from tunesmith.data.rows.shapes.turns import is_turns, messages_of

_OPENING_ROLES = ("system", "developer", "user")


def part_of(value: Any, key: str) -> Any:
    """Return a part as text or as a list of messages; the messages are not validated. key: its key, for errors."""
    if isinstance(value, dict):
        value = [value]
    return messages_of(value, key) if is_turns(value) else value


def prompt_of(value: Mapping[str, Any], *, has_template: bool) -> Any:
    """Return the prompt of a row with answers under other keys, in any format; None if it has none. Raises Refusal."""
    if value.get("prompt") is not None:
        return part_of(value["prompt"], "prompt")
    if value.get("instruction") is not None:
        if not has_template:
            return alpaca_prompt(value)
        messages = alpaca_messages(value)
        return messages if len(messages) > 1 else messages[0]["content"]
    if value.get("conversations") is not None:
        return messages_of(value["conversations"], "conversations")
    return part_of(value.get("messages"), "messages")


def is_whole(part: Any) -> bool:
    """Whether an answer is a whole conversation: a list that begins with a message of another role."""
    return isinstance(part, list) and bool(part) and isinstance(part[0], dict) and part[0].get("role") in _OPENING_ROLES


def prompt_and_completion(value: Mapping[str, Any]) -> list[Message]:
    """Return the messages of prompt and completion, of which only the completion is trained. Raises Refusal."""
    for key in ("prompt", "completion"):
        require_key(value, key)
    prompt, answers = (
        _messages(value[key], key, role) for key, role in (("prompt", "user"), ("completion", "assistant"))
    )
    for number, message in enumerate(answers):
        if message["role"] != "tool" and not is_answer(message):
            raise Refusal(
                "unknown_role",
                f"completion[{number}] is a {message['role']} message",
                "a completion has assistant and tool messages only; move the others to the prompt",
            )
    check_supervision(answers)
    context = [{"weight": 0, **message} if is_answer(message) else message for message in prompt]
    return [*context, *answers]


def _messages(part: Any, key: str, role: str) -> list[Message]:
    part = part_of(part, key)
    if isinstance(part, list):
        if not part:
            raise Refusal("no_messages", f"{key} has no messages", 'write [{"role": "...", "content": "..."}]')
        return [read_message(message, number, key) for number, message in enumerate(part)]
    return [{"role": role, "content": not_empty(part, key)}]
