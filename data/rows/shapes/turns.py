"""Conversations of ShareGPT and LLaMA-Factory, as messages.

    {"from": "human", "value": "..."}      roles: human, gpt, system, observation (a tool's result), function_call, ...
    {"role": "user", "content": "..."}     the same roles, or OpenAI's; other keys as in OpenAI's messages

The value of a function_call is JSON, {"name", "arguments"} or a list of these, and becomes `tool_calls`.
"""

from typing import Any

from tunesmith.data.readers.cells import parse_json
from tunesmith.data.refusal import Refusal, name_of
from tunesmith.data.rows.messages import (
    Message,
    check_near_misses,
    check_supervision,
    checked,
    missing,
    read_message,
    unknown_role,
    with_weight,
)

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
"""Role names of ShareGPT data sets, and the corresponding OpenAI roles."""
_CALLS = ("function_call", "tool_call")
_OPENAI_ONLY = ("developer", "function")
_STYLES = (("from", "value"), ("role", "content"))
_CALL_FORM = 'write {"name": "...", "arguments": {...}}, or a list of these'


def read_turns(value: Any) -> list[Message]:
    """Convert a conversation to messages, at least one of which is trained. Raises Refusal naming the turn."""
    messages = messages_of(value, "conversations")
    check_supervision(messages)
    return messages


def messages_of(value: Any, key: str) -> list[Message]:
    """Convert a conversation, or the beginning of one, to messages. key: its key, for errors. Raises Refusal."""
    if not isinstance(value, list) or not value:
        raise Refusal(
            "no_messages",
            f"{key} is not a list with at least one turn",
            'write [{"from": "human", "value": "..."}, ...], or [{"role": "user", "content": "..."}, ...]',
        )
    first = value[0] if isinstance(value[0], dict) else {}
    style = next((style for style in _STYLES if first.get(style[0]) is not None), _STYLES[0])
    read = _from_value if style == _STYLES[0] else _role_content
    return [read(turn, number, key) for number, turn in enumerate(value)]


def is_turns(value: Any) -> bool:
    """Whether a value is a list of {"from", "value"}."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and value[0].get("from") is not None


def _from_value(turn: Any, number: int, key: str) -> Message:
    where = f"{key}[{number}]"
    if not isinstance(turn, dict):
        raise Refusal("not_an_object", f"{where} is not an object", 'write {"from": "human", "value": "..."}')
    _require_style(turn, where, *_STYLES)
    for name in ("from", "value"):
        if turn.get(name) is None:
            raise missing(where, name, turn)
    role = turn["from"]
    if not isinstance(role, str) or role not in ROLES:
        raise unknown_role(where, role, tuple(ROLES))
    turn = with_weight(turn, where)
    check_near_misses(turn, where, frozenset(("from", "value", "weight")))
    message: Message = {"role": ROLES[role]}
    if role in _CALLS:
        message["tool_calls"] = _calls(turn["value"], f"{where}.value")
    else:
        message["content"] = turn["value"]
    if turn.get("weight") is not None:
        message["weight"] = turn["weight"]
    return checked(message, where, "value")


def _role_content(turn: Any, number: int, key: str) -> Message:
    where = f"{key}[{number}]"
    if isinstance(turn, dict):
        _require_style(turn, where, *reversed(_STYLES))
        role = turn.get("role")
        if isinstance(role, str) and role in ROLES:
            turn = {**turn, "role": ROLES[role]}
            if role in _CALLS:
                if turn.get("content") is None:
                    raise missing(where, "content", turn)
                turn["tool_calls"] = _calls(turn.pop("content"), f"{where}.content")
        elif role is not None and role not in _OPENAI_ONLY:
            raise unknown_role(where, role, (*ROLES, *_OPENAI_ONLY))
    return read_message(turn, number, key)


def _require_style(turn: Message, where: str, style: tuple[str, str], other: tuple[str, str]) -> None:
    """Raise Refusal if a turn is written in the other style than the first one."""
    if turn.get(style[0]) is None and turn.get(other[0]) is not None:
        names = [f'"{name}"' for name in (other[0], style[0])]
        raise Refusal(
            "mixed_formats",
            f"{where} has {names[0]}, and the first turn {names[1]}",
            f'write every turn with "{style[0]}" and "{style[1]}"',
        )


def _calls(value: Any, where: str) -> list[Message]:
    """Read the calls of a function_call turn, as in `tool_calls`."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise Refusal("invalid_json", f"{where} is not valid JSON: {error}", _CALL_FORM) from error
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise Refusal("invalid_tool_calls", f"{where} contains no call", _CALL_FORM)
    return [_call(call, where if call is value else f"{where}[{number}]") for number, call in enumerate(calls)]


def _call(call: Any, where: str) -> Message:
    if not isinstance(call, dict):
        raise Refusal("invalid_tool_calls", f"{where} is {name_of(call)}, not a call", _CALL_FORM)
    if "function" in call:
        return call
    unknown = next((name for name in call if name not in ("name", "arguments", "id")), None)
    if unknown is not None:
        raise Refusal("unknown_key", f'{where} has an unknown key "{str(unknown)[:40]}"', _CALL_FORM)
    function = {"arguments": {}} | {name: item for name, item in call.items() if name != "id"}
    return {**({"id": call["id"]} if "id" in call else {}), "type": "function", "function": function}
