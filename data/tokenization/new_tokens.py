"""Adds the tokens of a recipe (model.add_tokens) to the files of a model's tokenizer."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from tunesmith.configs.sections.model import NewToken
from tunesmith.data.tokenization.model_size import num_ids
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError

_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
_DECODER = "added_tokens_decoder"


@dataclass(frozen=True)
class ExtendedTokenizer:
    """A tokenizer with new tokens."""

    files: dict[str, Any]
    """Content of the tokenizer's files that differ from the base model's, JSON, by name."""
    num_known: int
    """Token ids of the base model's tokenizer: the largest plus one."""
    num_ids: int
    """The same with the new tokens."""
    ids: list[int]
    """Id of each new token."""
    described: dict[int, list[int]]
    """Tokens of the description of a new token, by its id, for those that have one."""


def extended_tokenizer(directory: Path, tokens: Sequence[NewToken], num_embeddings: int) -> ExtendedTokenizer:
    """Add tokens to the tokenizer of a model's directory, without writing anything.

    num_embeddings: rows of the model's embedding. A token that the tokenizer has, but the embedding has no row for, may
    be listed, too. Raises InputError if a token is blank, listed twice, already known, overlaps with a control token,
    or is not recognized in a text.
    """
    tokenizer = Tokenizer.load(directory)
    backend, num_known = tokenizer.backend, num_ids(tokenizer.backend)
    _require_new(tokenizer, [token.token for token in tokens], num_embeddings)
    described = [tokenizer.encode(token.description) if token.description else [] for token in tokens]
    for token in tokens:
        if backend.token_to_id(token.token) is None:
            backend.add_tokens([AddedToken(token.token, special=token.special, normalized=False)])
    ids = [_id_of(backend, token.token, place) for place, token in enumerate(tokens)]
    for place, row in enumerate(described):
        _require_embedded(row, min(num_known, num_embeddings), place)
    return ExtendedTokenizer(
        files=_files(directory, backend, ids),
        num_known=num_known,
        num_ids=num_ids(backend),
        ids=ids,
        described={number: row for number, row in zip(ids, described, strict=True) if row},
    )


def _require_new(tokenizer: Tokenizer, texts: Sequence[str], num_embeddings: int) -> None:
    controls = tokenizer.control.texts
    for place, text in enumerate(texts):
        if not text.strip():
            raise _error(place, "the token is empty or only spaces", "write the text of the token, such as <tool>")
        if text in texts[:place]:
            raise _error(place, f"the token {text!r} is listed twice", "remove one of the two")
        known = tokenizer.backend.token_to_id(text)
        if known is not None and known < num_embeddings:
            what = f"the token {text!r} is already in the vocabulary, as token {known}"
            raise _error(place, what, "remove it from the list, or choose another text")
        if known is None and (control := next((c for c in controls if c in text or text in c), None)) is not None:
            what = f"the token {text!r} is part of the control token {control!r}, or contains it"
            raise _error(place, what, "choose a text that does not overlap with a control token")


def _id_of(backend: Backend, text: str, place: int) -> int:
    number = backend.token_to_id(text)
    if number is None or number not in backend.encode(text, add_special_tokens=False).ids:
        what = f"the tokenizer does not recognize the token {text!r} in a text"
        raise _error(place, what, "choose a text without spaces at its ends, of letters and punctuation")
    return number


def _require_embedded(described: Iterable[int], num_rows: int, place: int) -> None:
    if max(described, default=0) >= num_rows:
        what = "the description has a token that the base model has no embedding for"
        raise _error(place, what, "describe the token in other words")


def _error(place: int, what: str, remedy: str) -> InputError:
    return InputError(what, where=f"key model.add_tokens[{place}]", remedy=remedy)


def _files(directory: Path, backend: Backend, ids: Sequence[int]) -> dict[str, Any]:
    """tokenizer.json, and tokenizer_config.json if it lists added tokens: transformers reads both."""
    added = json.loads(backend.to_str())["added_tokens"]
    files = {"tokenizer.json": _read(directory / "tokenizer.json") | {"added_tokens": added}}
    path = directory / "tokenizer_config.json"
    config = _read(path) if path.is_file() else {}
    if _DECODER in config:
        flags = {str(t["id"]): {key: t[key] for key in ("content", *_FLAGS)} for t in added if t["id"] in set(ids)}
        files["tokenizer_config.json"] = config | {_DECODER: config[_DECODER] | flags}
    return files


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))  # the tokenizer has been loaded from these files
