"""Prompts as token ids, rendered exactly as in training. Does not import torch: jobs and routes use it."""

import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from tunesmith.data.encoders.language_model import prompt_tokens
from tunesmith.data.refusal import Refusal
from tunesmith.data.tokenization.rendering_check import OmittedFields, require_prompt_shown
from tunesmith.data.tokenization.template_variables import TemplateKwargs, UnreadableVariable
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError, TunesmithError
from tunesmith.inference.types import MAX_CONTEXT, RequestRejected, Target, too_long
from tunesmith.model_files import require_undamaged

CHUNK, SPLIT_TOKENS = 1 << 16, 64
"""Characters encoded at once to check the length of a text, and maximum error in tokens where it is split."""
KWARGS = "chat_template_kwargs"
"""The request's key for values of template variables."""
_MAX_TOKENIZERS = 64
"""Cached tokenizers, of roughly ten megabytes each."""

_loaded: OrderedDict[Path, tuple[int, Tokenizer]] = OrderedDict()
_lock = threading.Lock()


def tokenizer_dir(target: Target) -> Path:
    """The directory of a target's tokenizer and chat template: the adapter's if it contains them, else the base's."""
    if target.adapter is not None and (target.adapter / "tokenizer.json").is_file():
        return target.adapter
    return target.base


def tokenizer_of(directory: Path, today: date | None = None) -> Tokenizer:
    """The tokenizer of a directory, cached. today: the date that its chat template prints, if it prints one; None: the
    current date. Raises RequestRejected if it is missing or unusable."""
    try:
        changed = (directory / "tokenizer.json").stat().st_mtime_ns
    except OSError:
        changed = 0
    today = today or date.today()
    with _lock:
        entry = _loaded.get(directory)
        if entry is None or entry[0] != changed or _prints_other_date(entry[1], today):
            try:
                require_undamaged(directory, weights=False)
                entry = changed, Tokenizer.load(directory, today=today)
            except TunesmithError as error:
                raise RequestRejected("unusable_tokenizer", str(error)) from error
        _loaded[directory] = entry
        _loaded.move_to_end(directory)
        while len(_loaded) > _MAX_TOKENIZERS:
            _loaded.popitem(last=False)
        return entry[1]


def _prints_other_date(tokenizer: Tokenizer, today: date) -> bool:
    printed = tokenizer.template.today if tokenizer.template else None
    return printed is not None and printed != today.isoformat()


def with_variables(tokenizer: Tokenizer, values: TemplateKwargs | None) -> Tokenizer:
    """The tokenizer with values for variables of its chat template. Raises RequestRejected that names a variable which
    the template does not read."""
    if not values:
        return tokenizer
    try:
        return _varied(tokenizer, json.dumps(values, sort_keys=True))
    except UnreadableVariable as error:
        message = f"{error.what}; {error.remedy}"
        raise RequestRejected("template_variable", message, parameter=f"{KWARGS}.{error.name}") from error
    except InputError as error:
        raise RequestRejected("template_variable", f"{error.what}; {error.remedy}", parameter=KWARGS) from error


@functools.lru_cache(maxsize=32)
def _varied(tokenizer: Tokenizer, values: str) -> Tokenizer:
    return tokenizer.with_template_kwargs(json.loads(values))


def evict(directory: Path) -> None:
    with _lock:
        _loaded.pop(directory, None)


@functools.lru_cache(maxsize=64)
def context_of(base: Path) -> int:
    """Context length of a base model in tokens; the engine's maximum if config.json does not state it."""
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        context = config.get("text_config", config).get("max_position_embeddings")  # the former: multimodal
    except (OSError, ValueError, AttributeError):
        context = None
    return context if isinstance(context, int) and context > 0 else MAX_CONTEXT


def require_room(num_tokens: int, target: Target) -> None:
    """Raise RequestRejected if a prompt is longer than the base model's context."""
    if num_tokens > (context := context_of(target.base)):
        raise too_long(context, num_tokens)


def render_prompt(
    directory: Path,
    messages: Sequence[dict[str, Any]],
    tools: list[Any] | None,
    context: int | None = None,
    *,
    split_special_tokens: bool = True,
    today: date | None = None,
    values: TemplateKwargs | None = None,
) -> list[int]:
    """Token ids of messages up to the start of the assistant's response.

    directory: of the tokenizer and chat template. messages, tools: as returned by `read_messages` and `check_tools`
    of data/rows/messages.py: contents are text, arguments of calls are objects. Without a chat template, the last
    message is continued. context: in tokens. split_special_tokens: as in a recipe. today: see tokenizer_of. values: of
    variables of the template. Raises RequestRejected if the template cannot render the messages or does not show
    everything in them, if they far exceed `context`, or if an assistant message contains a token that begins or ends
    messages.
    """
    tokenizer = with_variables(tokenizer_of(directory, today), values)
    try:
        if tokenizer.template is None:
            if tools:
                raise _omitted("the model has no chat template, which tools require", "tools")
            text = messages[-1].get("content") or ""
            _require_short(tokenizer, text, context)
            return tokenizer.encode_text_alone(text, split_special_tokens=split_special_tokens)
        require_prompt_shown(tokenizer.template, messages, tools or None)
        text = tokenizer.template.render(messages, tools or None, add_generation_prompt=True)
        _require_short(tokenizer, text, context)
        return prompt_tokens(tokenizer, text, messages, tools or None, split_special_tokens=split_special_tokens)
    except OmittedFields as refusal:
        names_tools = any(omission.message is None for omission in refusal.omissions)
        raise _omitted(f"{refusal.reason}; {refusal.remedy}", "tools" if names_tools else "messages") from refusal
    except Refusal as refusal:
        raise _rejected(refusal) from refusal


def render_target(
    target: Target,
    messages: Sequence[dict[str, Any]],
    tools: list[Any] | None,
    *,
    split_special_tokens: bool = True,
    today: date | None = None,
    values: TemplateKwargs | None = None,
) -> list[int]:
    """As `render_prompt`, for the tokenizer and the context of a target."""
    directory, context, splits = tokenizer_dir(target), context_of(target.base), split_special_tokens
    return render_prompt(directory, messages, tools, context, split_special_tokens=splits, today=today, values=values)


def tokenize(directory: Path, text: str, context: int | None = None, *, split_special_tokens: bool = True) -> list[int]:
    """Token ids of a text to continue, with the special tokens that start a sequence of this tokenizer.

    The task `completion` adds no token before a prompt. context: in tokens. split_special_tokens: as in a recipe.
    Raises RequestRejected."""
    tokenizer = tokenizer_of(directory)
    _require_short(tokenizer, text, context)
    if not split_special_tokens:
        return [*tokenizer.first_tokens, *tokenizer.encode(text)]
    try:
        return [*tokenizer.first_tokens, *tokenizer.encode_content(text)]
    except Refusal as refusal:
        raise _rejected(refusal) from refusal


def _require_short(tokenizer: Tokenizer, text: str, context: int | None) -> None:
    """Raise RequestRejected as soon as the first chunks of a text exceed the context: encoding the whole text takes
    about 300 bytes per character. Splitting a text may add a few tokens."""
    if context is None or len(text) <= CHUNK:
        return
    num_tokens = 0
    for start in range(0, len(text), CHUNK):
        num_tokens += len(tokenizer.encode(text[start : start + CHUNK])) - SPLIT_TOKENS
        if num_tokens > context:
            raise too_long(context, num_tokens, at_least=True)


def _rejected(refusal: Refusal) -> RequestRejected:
    if refusal.code == "special_token":
        return RequestRejected("special_token", f"{refusal.reason}; {refusal.remedy}")
    return RequestRejected("unusable_template", f"{refusal.reason}; {refusal.remedy}")


def _omitted(message: str, parameter: str) -> RequestRejected:
    return RequestRejected("unusable_template", message, parameter=parameter)
