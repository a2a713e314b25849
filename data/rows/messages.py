"""Validate the messages of a conversation: content that a template would silently omit or misread is rejected."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from tunesmith.data.readers.cells import parse_json
from tunesmith.data.readers.lines import MAX_DEPTH
from tunesmith.data.refusal import Refusal, name_of

ROLES = ("system", "developer", "user", "assistant", "tool")
_CALL_KEYS = ("tool_calls", "tool_call_id", "name")
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
KNOWN_KEYS = frozenset(("role", "content", "weight", "refusal", "audio", *_CALL_KEYS, *THOUGHT_KEYS))
SUPERVISION_KEYS = {"train": True, "trainable": True, "loss": True, "masked": False}
"""Keys of other tools that decide whether a message is trained, with the value that means so: read as `weight`."""
MAY_BE_EMPTY = ("system", "developer", "tool")

Message = dict[str, Any]


def read_messages(value: Any) -> list[Message]:
    """Read messages in the OpenAI format, at least one of which is trained; keys with null values are removed. Raises
    Refusal naming the message."""
    if not isinstance(value, list) or not value:
        raise Refusal(
            "no_messages",
            "messages is not a list with at least one message",
            'write [{"role": "user", "content": "..."}, ...]',
        )
    messages = [read_message(message, number) for number, message in enumerate(value)]
    check_supervision(messages)
    return messages


def read_prompt(value: Any) -> list[Message]:
    """Read the messages of a request for a completion: as in a row, but no message must be trained, and any may be
    empty. Raises Refusal naming the message."""
    if not isinstance(value, list) or not value:
        raise Refusal(
            "no_messages",
            "messages is not a list with at least one message",
            'write [{"role": "user", "content": "..."}, ...]',
        )
    return [read_message(message, number, may_be_empty=ROLES) for number, message in enumerate(value)]


def check_tools(value: Any, key: str = "tools") -> list[Any] | None:
    """Return the descriptions under a key, given as a list of objects or as its JSON text. Raises Refusal."""
    if isinstance(value, str) and value.strip():
        try:
            value = parse_json(value)
        except ValueError as error:
            raise Refusal(
                "invalid_json", f"{key} is not valid JSON: {error}", "write it as a list of objects"
            ) from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Refusal(
            "invalid_tools", f"{key} is not a list of objects", 'write [{"type": "function", "function": {...}}]'
        )
    _check_nested(value, key)
    return value


def read_text(value: Any, where: str) -> str:
    """Return text that can be tokenized. Raises Refusal. where: its place, for the message."""
    if type(value) is not str:
        raise Refusal("not_text", f"{where} is {name_of(value)}, not a string", "write it as a string, in quotes")
    if "\0" in value:
        raise Refusal(
            "nul_character", f"{where} contains a NUL character", "remove it; it usually indicates a damaged file"
        )
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Refusal(
                "lone_surrogate",
                f"{where} contains a lone surrogate (half a character) at position {error.start}",
                "write characters beyond U+FFFF unescaped, or as a pair of \\u escapes",
            ) from error
    return value


def read_message(
    message: Any, number: int, key: str = "messages", may_be_empty: Sequence[str] = MAY_BE_EMPTY
) -> Message:
    """Read one message of a list. key: of the list, for errors. Raises Refusal with the index of the message."""
    where = f"{key}[{number}]"
    try:
        return _read_message_at(where, message, may_be_empty)
    except Refusal as refusal:
        if refusal.reason.startswith(where):  # not for a key inside the message
            refusal.message, refusal.fault = number, refusal.reason.removeprefix(where).lstrip(".: ")
        raise


def _read_message_at(where: str, message: Any, may_be_empty: Sequence[str]) -> Message:
    if type(message) is not dict:
        raise Refusal("not_an_object", f"{where} is not an object", 'write {"role": "user", "content": "..."}')
    role = message.get("role")
    if role is None:
        raise missing(where, "role", message)
    if role == "function" or "function_call" in message:
        message = _as_tool_calls(message)
        role = message["role"]
    if type(role) is not str or role not in ROLES:
        raise unknown_role(where, role, ROLES)
    if message.get("content") is None and not message.get("tool_calls"):
        raise missing(where, "content", message)
    if len(message) > 2:
        message = {
            key: value
            for key, value in message.items()
            if value is not None and not (key == "tool_calls" and value == [])  # an empty list is no call
        }
        message = with_weight(message, where)
        check_near_misses(message, where, KNOWN_KEYS)
    elif message.get("content") is None:  # role and tool_calls alone
        message = {key: value for key, value in message.items() if value is not None}
    return checked(message, where, "content", may_be_empty)


def _as_tool_calls(message: Message) -> Message:
    """Convert OpenAI's deprecated format: a `function_call` becomes one of `tool_calls`, the role `function` `tool`."""
    converted = {key: value for key, value in message.items() if key != "function_call"}
    if message["role"] == "function":
        converted["role"] = "tool"
    if (call := message.get("function_call")) is not None:
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            remedy = "write a list of calls, or function_call alone"
            raise Refusal("invalid_tool_calls", "tool_calls is not a list", remedy)
        converted["tool_calls"] = [*calls, {"type": "function", "function": call}]
    return converted


def checked(message: Message, where: str, key: str, may_be_empty: Sequence[str] = MAY_BE_EMPTY) -> Message:
    """Return a message with a known role whose content, weight and calls are valid. key: of its content, for errors.
    Raises Refusal."""
    role, content = message["role"], message.get("content")
    if type(content) is list:
        content = _join_parts(content, f"{where}.{key}")
        message = {**message, "content": content}
    if content is not None:
        read_text(content, f"{where}.{key}")
    if not (content and content.strip()) and role not in may_be_empty and not message.get("tool_calls"):
        raise Refusal("empty", f"{where}: the {role} message is empty", "fill it in, or remove the row")
    if len(message) > 2 or content is None:
        message = _check_weight(message, where)
        if "tool_calls" in message:
            message = {**message, "tool_calls": _read_calls(message["tool_calls"], role, where)}
        for name, value in message.items():
            if name not in ("role", "content", "weight"):
                _check_nested(value, f"{where}.{name}")
    return message


def with_weight(message: Message, where: str) -> Message:
    """Return the message with `weight` in place of other tools' keys for it. Raises Refusal if they contradict."""
    keys = [key for key in SUPERVISION_KEYS if key in message]
    if not keys:
        return message
    weight = message.get("weight")
    for key in keys:
        value = message[key]
        if value is None:
            continue
        if value not in (0, 1):
            raise Refusal("invalid_weight", f"{where}.{key} is {value!r}", "write true or false")
        trained = int(bool(value) is SUPERVISION_KEYS[key])
        if weight is not None and weight != trained:
            raise Refusal(
                "invalid_weight", f"{where}: {key} contradicts another key about training", f"keep one of {keys}"
            )
        weight = trained
    rest = {key: value for key, value in message.items() if key not in keys}
    return rest if weight is None else {**rest, "weight": weight}


def _check_weight(message: Message, where: str) -> Message:
    weight = message.get("weight")
    if weight is None:
        return message
    if isinstance(weight, bool) or weight not in (0, 1):
        raise Refusal("invalid_weight", f"{where}.weight is {weight!r}", "write 0 (not trained) or 1 (trained)")
    if message["role"] != "assistant" and weight == 1:
        raise Refusal(
            "invalid_weight",
            f"{where} is a {message['role']} message with weight 1",
            "only assistant messages are trained: remove the weight",
        )
    return {**message, "weight": int(weight)}


def check_supervision(messages: list[Message]) -> None:
    """Raise Refusal if no message is trained."""
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise Refusal(
            "not_supervised",
            "no supervised token: the row has no assistant message",
            "add an assistant message, or remove the row",
        )
    if all(message.get("weight", 1) == 0 for message in answers):
        raise Refusal(
            "not_supervised",
            "no supervised token: every assistant message has weight 0",
            "set the weight of one to 1, or remove the row",
        )


def _join_parts(parts: list[Any], where: str) -> str:
    for number, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") != "text":
            if not isinstance(part, dict):
                raise Refusal(
                    "unsupported_part",
                    f"{where}[{number}] is {name_of(part)}, not an object",
                    'write {"type": "text", "text": "..."}, or the content as one string',
                )
            raise Refusal(
                "unsupported_part",
                f"{where}[{number}] is of type {part.get('type')!r}",
                "only text is supported: remove the part, or the row",
            )
        read_text(part.get("text"), f"{where}[{number}].text")
    return "".join(part["text"] for part in parts)


def _read_calls(calls: Any, role: str, where: str) -> list[Message]:
    """Parse the arguments of calls to objects: templates serialize them to JSON, and would quote a string twice."""
    if role != "assistant":
        raise Refusal(
            "invalid_tool_calls", f"{where} is a {role} message with tool_calls", "only assistant messages call tools"
        )
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Refusal(
            "invalid_tool_calls",
            f"{where}.tool_calls is not a list of objects",
            'write [{"type": "function", "function": {...}}]',
        )
    parsed = []
    for number, call in enumerate(calls):
        function = call.get("function", call)
        place = f"{where}.tool_calls[{number}]"
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refusal(
                "invalid_tool_calls",
                f"{place} has no function name",
                'write {"function": {"name": "...", "arguments": {...}}}',
            )
        if isinstance(function.get("arguments"), str):
            try:
                arguments = parse_json(function["arguments"] or "{}")
            except ValueError as error:
                raise Refusal(
                    "invalid_json", f"{place}: the arguments are not valid JSON: {error}", "fix the arguments"
                ) from error
            function = {**function, "arguments": arguments}
        parsed.append({**call, "function": function} if "function" in call else function)
    return parsed


def _check_nested(value: Any, where: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise Refusal("too_deep", f"{where} is nested more than {MAX_DEPTH} deep", "flatten it")
    if isinstance(value, str):
        read_text(value, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            read_text(key, f"a key of {where}")
            _check_nested(item, where, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_nested(item, where, depth + 1)


def check_near_misses(message: Message, where: str, known: frozenset[str]) -> None:
    """Raise Refusal for a key that is similar to a known one."""
    if message.keys() <= known:
        return
    for key in message:
        if key not in known:
            close = get_close_matches(key.lower(), [name for name in known if name not in message], 1, 0.8)
            if close:
                raise Refusal(
                    "unknown_key",
                    f'{where} has an unknown key "{key}"; did you mean "{close[0]}"?',
                    f'rename it to "{close[0]}", or remove it',
                )


def missing(where: str, key: str, message: Message) -> Refusal:
    """Return the refusal of a message without a key, with a hint."""
    close = get_close_matches(key, [str(name).lower() for name in message], 1, 0.6)
    hint = f'; did you write it as "{close[0]}"?' if close and close[0] != key else " (null)" if key in message else ""
    return Refusal("missing_key", f'{where} has no "{key}"{hint}', f'add "{key}"')


def unknown_role(where: str, role: Any, known: tuple[str, ...]) -> Refusal:
    """Return the refusal of a role, with the nearest known one."""
    close = get_close_matches(str(role).lower(), known, 1, 0.5)
    hint = f'; did you mean "{close[0]}"?' if close else ""
    return Refusal(
        "unknown_role", f"{where}: unknown role {str(role)[:40]!r}{hint}", f"the roles are {', '.join(known)}"
    )
