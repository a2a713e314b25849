"""Prompts as token ids, exactly as training renders the same messages. No torch: jobs and routes call it."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.documents import prompt_tokens
from tunesmith.data.refusal import Refusal
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import InputError
from tunesmith.serving.engine.protocol import EngineRefused, Target

_KEPT = 64
"""Tokenizers in memory; one takes some ten megabytes."""

_loaded: OrderedDict[Path, tuple[int, Tokenizer]] = OrderedDict()
_lock = threading.Lock()


def tokenizer_dir(target: Target) -> Path:
    """The directory whose tokenizer and chat template serve a target: the adapter's where it was exported with them."""
    if target.adapter is not None and (target.adapter / "tokenizer.json").is_file():
        return target.adapter
    return target.base


def tokenizer_of(directory: Path) -> Tokenizer:
    """The tokenizer of a directory, read once. Raises EngineRefused where there is none that can be used."""
    try:
        changed = (directory / "tokenizer.json").stat().st_mtime_ns
    except OSError:
        changed = 0
    with _lock:
        found = _loaded.get(directory)
        if found is None or found[0] != changed:
            try:
                found = changed, Tokenizer.load(directory)
            except InputError as error:
                raise EngineRefused(str(error)) from error
        _loaded[directory] = found
        _loaded.move_to_end(directory)
        while len(_loaded) > _KEPT:
            _loaded.popitem(last=False)
        return found[1]


def forget(directory: Path) -> None:
    with _lock:
        _loaded.pop(directory, None)


def render_prompt(directory: Path, messages: Sequence[dict[str, Any]], tools: list[Any] | None) -> list[int]:
    """Token ids of messages up to where the assistant's answer starts, with the tokenizer and template of a directory.

    messages, tools: as data/messages.py reads them (`read_messages`, `check_tools`): contents are text, arguments of
    calls are objects. A model without a chat template continues the last message. Raises EngineRefused where the
    template cannot show them.
    """
    tokenizer = tokenizer_of(directory)
    if tokenizer.template is None:
        return tokenizer.encode(messages[-1].get("content") or "", add_special_tokens=True)
    try:
        return prompt_tokens(tokenizer, messages, tools or None)
    except Refusal as refusal:
        raise EngineRefused(f"{refusal.reason}; {refusal.remedy}") from refusal


def shows_tools(directory: Path, tools: list[Any]) -> bool:
    """Whether the chat template shows tools to the model at all."""
    template = tokenizer_of(directory).template
    asked = [{"role": "user", "content": "Hello"}]
    try:
        return template is not None and template.render(asked, tools) != template.render(asked)
    except Refusal as refusal:
        raise EngineRefused(f"{refusal.reason}; {refusal.remedy}") from refusal


def render_target(target: Target, messages: Sequence[dict[str, Any]], tools: list[Any] | None) -> list[int]:
    return render_prompt(tokenizer_dir(target), messages, tools)


def tokenize(directory: Path, text: str) -> list[int]:
    """Token ids of a text to continue: the task `completion` puts nothing before a prompt, other models what their
    tokenizer puts there of its own accord. Raises EngineRefused."""
    tokenizer = tokenizer_of(directory)
    return [*tokenizer.first_tokens, *tokenizer.encode(text)]
