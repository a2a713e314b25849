"""Prompts as token ids, exactly as training renders the same messages. Free of torch: jobs and routes call it."""

import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.encoders.language_model import prompt_tokens
from tunesmith.data.refusal import Refusal
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError
from tunesmith.inference.types import MAX_CONTEXT, RequestRejected, Target, too_long

PIECE, CUT_TOKENS = 1 << 16, 64
"""Characters that are encoded at once to see whether a text is too long, and tokens by which a cut may miscount."""
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
    """The tokenizer of a directory, read once. Raises RequestRejected where there is none that can be used."""
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
                raise RequestRejected("unusable_tokenizer", str(error)) from error
        _loaded[directory] = found
        _loaded.move_to_end(directory)
        while len(_loaded) > _KEPT:
            _loaded.popitem(last=False)
        return found[1]


def evict(directory: Path) -> None:
    with _lock:
        _loaded.pop(directory, None)


@functools.lru_cache(maxsize=64)
def context_of(base: Path) -> int:
    """Tokens that the base of this directory has positions for; where it does not tell, as many as the engine takes."""
    try:
        told = json.loads((base / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        told = None
    return told if isinstance(told, int) and told > 0 else MAX_CONTEXT


def require_room(num_tokens: int, target: Target) -> None:
    """Raises RequestRejected where a prompt is longer than the base's context."""
    if num_tokens > (most := context_of(target.base)):
        raise too_long(most, num_tokens)


def render_prompt(
    directory: Path, messages: Sequence[dict[str, Any]], tools: list[Any] | None, most: int | None = None
) -> list[int]:
    """Token ids of messages up to where the assistant's answer starts, with the tokenizer and template of a directory.

    messages, tools: as data/rows/messages.py reads them (`read_messages`, `check_tools`): contents are text,
    arguments of calls are objects. A model without a chat template continues the last message. most: tokens of its
    context. Raises RequestRejected where the template cannot show them, or they are far more than `most`.
    """
    tokenizer = tokenizer_of(directory)
    if tokenizer.template is None:
        text = messages[-1].get("content") or ""
        _require_short(tokenizer, text, most)
        return tokenizer.encode(text, add_special_tokens=True)
    try:
        text = tokenizer.template.render(messages, tools or None, add_generation_prompt=True)
        _require_short(tokenizer, text, most)
        return prompt_tokens(tokenizer, text, messages, tools or None)
    except Refusal as refusal:
        raise _unusable_template(refusal) from refusal


def shows_tools(directory: Path, tools: list[Any]) -> bool:
    """Whether the chat template shows tools to the model at all."""
    template = tokenizer_of(directory).template
    asked = [{"role": "user", "content": "Hello"}]
    try:
        return template is not None and template.render(asked, tools) != template.render(asked)
    except Refusal as refusal:
        raise _unusable_template(refusal) from refusal


def render_target(target: Target, messages: Sequence[dict[str, Any]], tools: list[Any] | None) -> list[int]:
    return render_prompt(tokenizer_dir(target), messages, tools, context_of(target.base))


def tokenize(directory: Path, text: str, most: int | None = None) -> list[int]:
    """Token ids of a text to continue: the task `completion` puts nothing before a prompt, other models what their
    tokenizer puts there of its own accord. most: tokens of the context. Raises RequestRejected."""
    tokenizer = tokenizer_of(directory)
    _require_short(tokenizer, text, most)
    return [*tokenizer.first_tokens, *tokenizer.encode(text)]


def _require_short(tokenizer: Tokenizer, text: str, most: int | None) -> None:
    """Raises RequestRejected for a text of which the first pieces alone are more than the context: encoding all of it
    takes some 300 bytes a character. Where a text is cut, a few more tokens come than in the whole."""
    if most is None or len(text) <= PIECE:
        return
    num_tokens = 0
    for start in range(0, len(text), PIECE):
        num_tokens += len(tokenizer.encode(text[start : start + PIECE])) - CUT_TOKENS
        if num_tokens > most:
            raise too_long(most, num_tokens, at_least=True)


def _unusable_template(refusal: Refusal) -> RequestRejected:
    return RequestRejected("unusable_template", f"{refusal.reason}; {refusal.remedy}")
