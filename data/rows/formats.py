"""Convert the object of a line to a row. The format is detected by its keys; ambiguous rows are rejected with a reason.

    chat        {"messages": [{"role", "content", "weight"?, "tool_calls"?, ...}], "tools"?}         OpenAI
                {"conversations": [{"from", "value"}]}, or with {"role", "content"}                  shapes/turns.py
                {"prompt", "completion"}: texts, or lists of messages                                shapes/parts.py
                {"instruction", "input"?, "output", "system"?, "history"?}                           shapes/alpaca.py
    completion  {"prompt", "completion"}: texts
                {"instruction", "input"?, "output"}
    text        {"text"}

For the task chat, texts become a user message and an assistant message, and every format may have "system" (a system
message at the beginning) and "tools", or OpenAI's deprecated "functions". Rows of the other tasks:
shapes/preference.py, shapes/rated.py (KTO) and shapes/texts.py (classification).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from tunesmith.configs.tasks import TASKS
from tunesmith.data.refusal import Refusal, keys_of, name_of
from tunesmith.data.rows.context import CONTEXT_KEYS, require_no_context, require_text_only, tools_of, with_system
from tunesmith.data.rows.fields import filled, mapping_hint, nearest
from tunesmith.data.rows.messages import read_messages, read_text
from tunesmith.data.rows.shapes.alpaca import alpaca_messages, alpaca_prompt
from tunesmith.data.rows.shapes.parts import prompt_and_completion
from tunesmith.data.rows.shapes.turns import read_turns

FORMS = {
    "messages": ("messages", *CONTEXT_KEYS),
    "conversations": ("conversations", *CONTEXT_KEYS),
    "prompt": ("prompt", "completion", *CONTEXT_KEYS),
    "instruction": ("instruction", "input", "output", "history", *CONTEXT_KEYS),
    "text": ("text",),
}
"""The key that identifies a form, and all keys with a meaning in it. Other keys are ignored."""

FORMS_OF_TASK = {
    "chat": ("messages", "conversations", "prompt", "instruction"),
    "completion": ("prompt", "instruction"),
    "text": ("text",),
}
"""The forms accepted for each task. Tasks with configurable columns are not listed."""

_GUESSED = {
    "messages": "chat",
    "conversations": "chat",
    "prompt": "completion",
    "instruction": "completion",
    "text": "text",
}
"""The task that a key indicates; the first key that a row has decides."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """messages: dicts with role, content (text, or absent if there are tool_calls) and other keys for the template."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None

    def key(self) -> bytes:
        """Return 16 bytes, equal for equal content. Weights are ignored: they affect the loss mask, not the text."""
        parts: list[str] = [] if self.tools is None else [json.dumps(self.tools, sort_keys=True, default=str)]
        for message in self.messages:
            content = {name: value for name, value in message.items() if name != "weight"}
            plain = content.keys() == {"role", "content"}
            other = "" if plain else json.dumps(content, sort_keys=True, default=str)  # Parquet has dates
            parts += (content["role"], content["content"]) if plain else ("", other)
        return _digest(parts)


@dataclass(frozen=True, slots=True)
class Completion:
    prompt: str
    completion: str

    def key(self) -> bytes:
        return _digest([self.prompt, self.completion])


@dataclass(frozen=True, slots=True)
class Text:
    text: str

    def key(self) -> bytes:
        return _digest([self.text])


Row = Conversation | Completion | Text


def read_row(value: Any, task: str) -> Row:
    """Convert the object of a line to a row of the task. Raises Refusal."""
    if type(value) is not dict:
        raise Refusal("not_an_object", f"the row is {name_of(value)}, not an object", 'write each row as {"key": ...}')
    form = form_of(value, task)
    if form is None:
        raise _unknown_form(value, task)
    if len(value) > 1:
        _check_keys(value, FORMS[form])
        require_text_only(value)
    if form == "text":
        return Text(filled(value, "text"))
    if TASKS[task].templated:
        return Conversation(with_system(_messages_of(value, form), value.get("system")), tools_of(value))
    require_no_context(value)
    if form == "prompt":
        return Completion(_plain_text(value["prompt"], "prompt"), filled(value, "completion"))
    return Completion(alpaca_prompt(value), filled(value, "output"))


def form_of(value: Mapping[str, object], task: str) -> str | None:
    """Return the key that identifies a row's format, None if it has none. task: chat, completion or text."""
    return next((key for key in FORMS_OF_TASK[task] if value.get(key) is not None), None)


def _messages_of(value: Mapping[str, Any], form: str) -> list[dict[str, Any]]:
    if form == "messages":
        return read_messages(value["messages"])
    if form == "conversations":
        return read_turns(value["conversations"])
    if form == "prompt":
        return prompt_and_completion(value)
    return [*alpaca_messages(value), {"role": "assistant", "content": filled(value, "output")}]


def _plain_text(value: Any, where: str) -> str:
    if isinstance(value, list):
        raise Refusal(
            "not_text",
            f"{where} is a list, not a string",
            "write it as a string; a list of messages is for the task chat",
        )
    return read_text(value, where)


def guess_task(value: Any) -> str | None:
    """Return the task that a row's keys indicate; None if they indicate none."""
    keys = value.keys() if isinstance(value, dict) else ()
    key = next((key for key in _GUESSED if key in keys), None)
    if key == "prompt" and isinstance(value["prompt"], list):
        return "chat"
    return None if key is None else _GUESSED[key]


def _check_keys(value: Mapping[str, object], known: tuple[str, ...]) -> None:
    """Reject keys similar to a known key: a misspelled key would silently change what is trained."""
    for key in value:
        if key not in known and key not in FORMS:
            close = nearest(key, [name for name in known if name not in value], 0.8)
            if close:
                raise Refusal(
                    "unknown_key",
                    f'unknown key "{key}"; did you mean "{close}"?',
                    f'rename it to "{close}", or remove it',
                )


def _unknown_form(value: Mapping[str, object], task: str) -> Refusal:
    forms = list(FORMS_OF_TASK[task])
    for key in value:
        if close := nearest(key, forms, 0.7):
            if key == close:
                return Refusal("missing_key", f'"{key}" is null', f'set "{key}", or remove the row')
            return Refusal("unknown_key", f'unknown key "{key}"; did you mean "{close}"?', f'rename it to "{close}"')
    other = guess_task(value)
    if other is not None and other != task:
        return Refusal(
            "other_task",
            f"the row is for the task {other}, but the recipe's task is {task}",
            f"set `task: {other}`, or convert the row",
        )
    required = " or ".join(f'"{form}"' for form in forms)
    remedy = f"a row for the task {task} requires it; {keys_of(value)}"
    if other is None and TASKS[task].has_prompt and (hint := mapping_hint(value)):
        remedy = f"{hint}; {remedy}"
    return Refusal("missing_key", f"the row has no {required}", remedy)


def _digest(parts: Iterable[str]) -> bytes:
    # Lengths are hashed as well, so that moving text between fields changes the hash.
    joined = "\x1f".join([f"{len(part)}\x1f{part}" for part in parts])
    return blake2b(joined.encode("utf-8"), digest_size=16).digest()
