"""One line's object to a row, its format found by its keys; anything doubtful is refused with a reason.

    chat        {"messages": [{"role", "content", "weight"?, "tool_calls"?, ...}], "tools"?}         OpenAI
                {"conversations": [{"from", "value"}], "system"?, "tools"?}                          ShareGPT
    completion  {"prompt", "completion"}
                {"instruction", "input"?, "output", "system"?, "history"?}                           Alpaca
    text        {"text"}

Under the task chat, the two completion forms become a question and an answer.
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

FORMS = {
    "messages": ("messages", "tools"),
    "conversations": ("conversations", "system", "tools"),
    "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "input", "output", "system", "history"),
    "text": ("text",),
}
"""The key by which a form is known, and all keys that mean something in it. Other keys are the user's own."""

FORMS_OF_TASK = {
    "chat": ("messages", "conversations", "prompt", "instruction"),
    "completion": ("prompt", "instruction"),
    "text": ("text",),
}
"""The forms in which the rows of a task may be written; tasks that read columns of their own have none."""

_GUESSED = {
    "messages": "chat",
    "conversations": "chat",
    "prompt": "completion",
    "instruction": "completion",
    "text": "text",
}
"""The task that a key speaks for, the first of these that a row has."""

# Taori et al. 2023, Stanford Alpaca: the prompt that models tuned on this form expect.
_ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}{input}\n\n### Response:\n"
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """messages: dicts with role, content (text, or absent beside tool_calls) and what else the template may show."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None

    def key(self) -> bytes:
        """16 bytes, equal for equal content. Weights do not count: they change what is trained, not what is said."""
        parts: list[str] = [] if self.tools is None else [json.dumps(self.tools, sort_keys=True)]
        for message in self.messages:
            said = {name: value for name, value in message.items() if name != "weight"}
            plain = said.keys() == {"role", "content"}
            parts += (said["role"], said["content"]) if plain else ("", json.dumps(said, sort_keys=True))
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
    """A row of the task from one line's object. Raises Refusal."""
    if type(value) is not dict:
        raise Refusal("not_an_object", f"the row is {name_of(value)}, not an object", 'write each row as {"key": ...}')
    form = next((key for key in FORMS_OF_TASK[task] if value.get(key) is not None), None)
    if form is None:
        raise _unknown_form(value, task)
    if len(value) > 1:
        _check_keys(value, FORMS[form])
    if form == "text":
        return Text(_filled(value, "text"))
    if form == "messages":
        return Conversation(read_messages(value["messages"]), check_tools(value.get("tools")))
    if form == "conversations":
        return Conversation(read_turns(value["conversations"], value.get("system")), check_tools(value.get("tools")))
    if TASKS[task].templated:
        return _as_conversation(value, form)
    if form == "prompt":
        return Completion(read_text(value["prompt"], "prompt"), _filled(value, "completion"))
    return _alpaca_completion(value)


def guess_task(value: Any) -> str | None:
    """The task that a row's keys speak for; None where they speak for none."""
    keys = value.keys() if isinstance(value, dict) else ()
    return next((task for key, task in _GUESSED.items() if key in keys), None)


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    matches = get_close_matches(word.lower(), list(known), 1, cutoff)
    return matches[0] if matches else None


def _as_conversation(value: Mapping[str, object], form: str) -> Conversation:
    question_key, answer_key = ("prompt", "completion") if form == "prompt" else ("instruction", "output")
    question = _filled(value, question_key)
    messages: list[dict[str, Any]] = []
    if form == "instruction":
        if value.get("input"):
            question = f"{question}\n\n{read_text(value['input'], 'input')}"
        if value.get("system"):
            messages.append({"role": "system", "content": read_text(value["system"], "system")})
        history: Any = value.get("history") or []
        for number, pair in enumerate(history):
            if not isinstance(pair, list) or len(pair) != 2:
                raise Refusal(
                    "invalid_history",
                    f"history[{number}] is not a pair of question and answer",
                    'write it as ["...", "..."]',
                )
            for role, said in zip(("user", "assistant"), pair, strict=True):
                messages.append({"role": role, "content": _not_empty(said, f"history[{number}]")})
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": _filled(value, answer_key)})
    return Conversation(messages, None)


def _alpaca_completion(value: Mapping[str, object]) -> Completion:
    for key in ("system", "history"):
        if value.get(key):
            raise Refusal(
                "unsupported_key",
                f'"{key}" has no place in a completion',
                "set `task: chat`, where it is shown to the model",
            )
    given = value.get("input")
    prompt = _ALPACA.format(
        paired=", paired with an input that provides further context" if given else "",
        instruction=_filled(value, "instruction"),
        input=f"\n\n### Input:\n{read_text(given, 'input')}" if given else "",
    )
    return Completion(prompt, _filled(value, "output"))


def _filled(value: Mapping[str, object], key: str) -> str:
    if value.get(key) is None:
        close = nearest(key, [name for name in value if name not in FORMS])
        hint = f'; did you mean it by "{close}"?' if close else ""
        raise Refusal("missing_key", f'"{key}" is missing{hint}', f'give the row a "{key}"; {keys_of(value)}')
    return _not_empty(value[key], key)


def _not_empty(value: Any, where: str) -> str:
    text = read_text(value, where)
    if not text.strip():
        raise Refusal("empty", f"{where} is empty", "fill it in, or remove the row")
    return text


def _check_keys(value: Mapping[str, object], known: tuple[str, ...]) -> None:
    """A key that is nearly one that means something is a slip that would silently change what is trained."""
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
                return Refusal("missing_key", f'"{key}" is null', f'give the row a "{key}", or remove it')
            return Refusal("unknown_key", f'unknown key "{key}"; did you mean "{close}"?', f'rename it to "{close}"')
    other = guess_task(value)
    if other is not None and other != task:
        return Refusal(
            "other_task",
            f"the row is of the task {other}, the recipe's task is {task}",
            f"set `task: {other}`, or convert it",
        )
    needed = " or ".join(f'"{form}"' for form in forms)
    return Refusal("missing_key", f"the row has no {needed}", f"a row of the task {task} needs it; {keys_of(value)}")


def _digest(parts: Iterable[str]) -> bytes:
    # Lengths are part of what is hashed, so that moving words between fields makes another content.
    joined = "\x1f".join([f"{len(part)}\x1f{part}" for part in parts])
    return blake2b(joined.encode("utf-8"), digest_size=16).digest()
