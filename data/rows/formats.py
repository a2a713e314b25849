"""Convert the object of a line to a row. The format is detected by its keys; ambiguous rows are rejected with a reason.

    chat        {"messages": [{"role", "content", "weight"?, "tool_calls"?, ...}], "tools"?}         OpenAI
                {"conversations": [{"from", "value"}]}                                               ShareGPT
    completion  {"prompt", "completion"}
                {"instruction", "input"?, "output", "system"?, "history"?}                           Alpaca
    text        {"text"}

For the task chat, both completion formats become a user message and an assistant message, and every format may have
"system" (a system message at the beginning) and "tools", or OpenAI's deprecated "functions".
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b
from typing import Any

from tunesmith.configs.tasks import TASKS
from tunesmith.data.refusal import Refusal, keys_of, name_of
from tunesmith.data.rows.messages import check_tools, read_messages, read_text, read_turns

CONTEXT_KEYS = ("system", "tools", "functions")
"""Keys of a row that belong to the context of its answers."""
MEDIA_KEYS = ("images", "image", "videos", "video", "audios", "audio")
"""Keys of multimodal rows: what they hold cannot be trained."""
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

# Taori et al. 2023, Stanford Alpaca: the prompt of models trained on this form.
_ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}{input}\n\n### Response:\n"
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """messages: dicts with role, content (text, or absent if there are tool_calls) and other keys for the template."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None

    def key(self) -> bytes:
        """Return 16 bytes, equal for equal content. Weights are ignored: they affect the loss mask, not the text."""
        parts: list[str] = [] if self.tools is None else [json.dumps(self.tools, sort_keys=True)]
        for message in self.messages:
            content = {name: value for name, value in message.items() if name != "weight"}
            plain = content.keys() == {"role", "content"}
            parts += (content["role"], content["content"]) if plain else ("", json.dumps(content, sort_keys=True))
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
    form = next((key for key in FORMS_OF_TASK[task] if value.get(key) is not None), None)
    if form is None:
        raise _unknown_form(value, task)
    if len(value) > 1:
        _check_keys(value, FORMS[form])
        require_text_only(value)
    if form == "text":
        return Text(_filled(value, "text"))
    if form == "messages":
        return Conversation(_with_system(read_messages(value["messages"]), value.get("system")), _tools_of(value))
    if form == "conversations":
        return Conversation(_with_system(read_turns(value["conversations"]), value.get("system")), _tools_of(value))
    if TASKS[task].templated:
        return _as_conversation(value, form)
    _require_no_context(value)
    if form == "prompt":
        return Completion(read_text(value["prompt"], "prompt"), _filled(value, "completion"))
    return _alpaca_completion(value)


def require_text_only(value: Mapping[str, object]) -> None:
    """Raise Refusal if a row has images or the like: the model would be trained on answers to what it never saw."""
    for key in MEDIA_KEYS:
        if value.get(key):
            raise Refusal(
                "unsupported_key", f'the row has "{key}"', f'only text is supported: remove "{key}", or the row'
            )


def context_of(value: Mapping[str, object]) -> dict[str, object]:
    """Return the keys of a row that belong to the context of its answers, whatever its format."""
    return {key: value[key] for key in CONTEXT_KEYS if value.get(key)}


def guess_task(value: Any) -> str | None:
    """Return the task that a row's keys indicate; None if they indicate none."""
    keys = value.keys() if isinstance(value, dict) else ()
    return next((task for key, task in _GUESSED.items() if key in keys), None)


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known word closest to a misspelled one; None if none is close."""
    matches = get_close_matches(word.lower(), list(known), 1, cutoff)
    return matches[0] if matches else None


def _as_conversation(value: Mapping[str, object], form: str) -> Conversation:
    question_key, answer_key = ("prompt", "completion") if form == "prompt" else ("instruction", "output")
    question = _filled(value, question_key)
    messages: list[dict[str, Any]] = []
    if form == "instruction":
        if value.get("input"):
            question = f"{question}\n\n{read_text(value['input'], 'input')}"
        history: Any = value.get("history") or []
        for number, pair in enumerate(history):
            if not isinstance(pair, list) or len(pair) != 2:
                raise Refusal(
                    "invalid_history",
                    f"history[{number}] is not a pair of question and answer",
                    'write it as ["...", "..."]',
                )
            for role, content in zip(("user", "assistant"), pair, strict=True):
                messages.append({"role": role, "content": _not_empty(content, f"history[{number}]")})
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": _filled(value, answer_key)})
    return Conversation(_with_system(messages, value.get("system")), _tools_of(value))


def _with_system(messages: list[dict[str, Any]], system: object) -> list[dict[str, Any]]:
    """The messages after the row's own system message, if it has one."""
    if not system:
        return messages
    if messages[0]["role"] in ("system", "developer"):
        raise Refusal(
            "unsupported_key",
            f'the row has "system" and begins with a {messages[0]["role"]} message',
            "keep one of them",
        )
    return [{"role": "system", "content": read_text(system, "system")}, *messages]


def _tools_of(value: Mapping[str, object]) -> list[Any] | None:
    """The row's tools; OpenAI's deprecated `functions` become tools."""
    tools, functions = check_tools(value.get("tools")), check_tools(value.get("functions"), "functions")
    if tools and functions:
        raise Refusal("unsupported_key", 'the row has both "tools" and "functions"', 'keep "tools"')
    return tools or (functions and [{"type": "function", "function": function} for function in functions])


def _require_no_context(value: Mapping[str, object]) -> None:
    for key in (*CONTEXT_KEYS, "history"):
        if value.get(key):
            raise Refusal(
                "unsupported_key", f'"{key}" is not supported in a completion', "set `task: chat`, which supports it"
            )


def _alpaca_completion(value: Mapping[str, object]) -> Completion:
    context = value.get("input")
    prompt = _ALPACA.format(
        paired=", paired with an input that provides further context" if context else "",
        instruction=_filled(value, "instruction"),
        input=f"\n\n### Input:\n{read_text(context, 'input')}" if context else "",
    )
    return Completion(prompt, _filled(value, "output"))


def _filled(value: Mapping[str, object], key: str) -> str:
    if value.get(key) is None:
        close = nearest(key, [name for name in value if name not in FORMS])
        hint = f'; did you write it as "{close}"?' if close else ""
        raise Refusal("missing_key", f'"{key}" is missing{hint}', f'add "{key}" to the row; {keys_of(value)}')
    return _not_empty(value[key], key)


def _not_empty(value: Any, where: str) -> str:
    text = read_text(value, where)
    if not text.strip():
        raise Refusal("empty", f"{where} is empty", "fill it in, or remove the row")
    return text


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
    return Refusal("missing_key", f"the row has no {required}", remedy)


def _digest(parts: Iterable[str]) -> bytes:
    # Lengths are hashed as well, so that moving text between fields changes the hash.
    joined = "\x1f".join([f"{len(part)}\x1f{part}" for part in parts])
    return blake2b(joined.encode("utf-8"), digest_size=16).digest()
