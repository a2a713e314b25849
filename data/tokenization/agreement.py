"""Compare the tokenizer with that of the installed transformers, which other tools use with the exported model.

transformers builds some classes of tokenizers (`tokenizer_class: LlamaTokenizer`) again from the vocabulary of
tokenizer.json, with its own rules for spaces and pre-tokens. If both tokenizers have the same serialization, all tokens
are equal; the result is cached for the files and the versions. Otherwise a text with every special token and the first
rows are tokenized both ways, and a difference is an error that names it.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith.data.cache import cache_root
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError
from tunesmith.rundir.atomic import write_json

REFERENCE = "tunesmith.modeling.loading.reference_tokenizer"
ROWS = 64
"""Rows to compare."""
_LONGEST = 20_000  # characters of a row: its beginning shows a difference
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
_PROBE = "Hello world  two\n\n\tx=1; it's naïve café, 北京 😀 3.14 12345 \u200b\u00a0 THE end. "
_LIMIT_S = 600.0


def require_agreement(tokenizer: Tokenizer, rows: Sequence[tuple[str, str]], *, adds: bool, withheld: bool) -> None:
    """Raise InputError if transformers, where it is installed, tokenizes a text differently.

    rows: place and text of the first rows. adds: whether the tokens that tokenizers add around a text matter. withheld:
    whether rows must not be shown.
    """
    versions = _versions()
    if tokenizer.directory is None or versions is None:
        return
    texts = [("special tokens", probe(tokenizer)), *((place, text[:_LONGEST]) for place, text in rows[:ROWS])]
    key = _key(tokenizer, tokenizer.directory, versions)
    same, compared = _result(key), _result(_hash([key, str(adds), json.dumps(texts)]))
    if compared.is_file() or (same.is_file() and not _read(same).get("again")):
        return
    response = _ask(tokenizer.directory, [text for _, text in texts], adds)
    if "error" in response:  # there is nothing to compare with; the plan says so, see `missing_comparison`
        _store(same, {"equal": None, **response})
        return
    if digest_of(response["serialized"]) == digest_of(tokenizer.backend.to_str()):
        _store(same, {"equal": True})
        return
    for (place, text), reference in zip(texts, response["tokens"], strict=True):
        own = tokenizer.encode(text, add_special_tokens=adds)
        if own != reference:
            raise _difference(tokenizer, place, own, reference, versions[0], withheld and place != texts[0][0])
    _store(compared, {"equal": True})


def missing_comparison(tokenizer: Tokenizer) -> str | None:
    """Return a warning if this tokenizer could not be compared; None if it was, or if transformers is not installed."""
    versions = _versions()
    if tokenizer.directory is None or versions is None:
        return None
    error = _read(_result(_key(tokenizer, tokenizer.directory, versions))).get("error")
    return error and f"the installed transformers cannot load the tokenizer, so tokens were not compared: {error}"


def _key(tokenizer: Tokenizer, directory: Path, versions: tuple[str, str]) -> str:
    files = [_content(directory / name) for name in _FILES]
    return _hash([*files, *versions, digest_of(tokenizer.backend.to_str())])


def _result(key: str) -> Path:
    return cache_root() / "agreement" / f"{key}.json"


def _read(path: Path) -> dict[str, Any]:
    """A stored result; empty if there is none, or if it is damaged."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def _store(path: Path, result: dict[str, Any]) -> None:
    """Keep a result, so that the comparison is made once. A cache that cannot be written costs it again."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)


def probe(tokenizer: Tokenizer) -> str:
    """A text with every special token, between words, spaces and line ends."""
    added = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()]
    return _PROBE + "".join(f"{token}word {token} \n{token}{token}" for token in added[:ROWS]) + _PROBE


def digest_of(serialized: str) -> str:
    """Return the SHA-256 of all that affects the tokens of a text: tokenizer.json without truncation and padding."""
    described = json.loads(serialized) | {"truncation": None, "padding": None}
    described["post_processor"] = _adding(described.get("post_processor"))
    return _hash([json.dumps(described, sort_keys=True)])


def _adding(processor: dict[str, Any] | None) -> list[Any]:
    """The parts of a post-processor that add tokens."""
    parts = processor["processors"] if processor and processor["type"] == "Sequence" else [processor]
    return [part for part in parts if part and part["type"] != "ByteLevel" and part.get("special_tokens") != {}]


def _versions() -> tuple[str, str] | None:
    """The versions of transformers and tokenizers; None if transformers is not installed."""
    try:
        return metadata.version("transformers"), metadata.version("tokenizers")
    except metadata.PackageNotFoundError:
        return None


def _ask(directory: Path, texts: list[str], adds: bool) -> dict[str, Any]:
    """Tokenize texts with transformers, in a process of its own: importing it takes seconds and much memory. Returns
    {"serialized", "tokens"}, {"error"} if transformers cannot load the tokenizer, or {"error", "again"} if the process
    failed, which may succeed another time."""
    request = {"directory": str(directory.resolve()), "texts": texts, "add_special_tokens": adds}
    try:
        ended = subprocess.run(
            [sys.executable, "-m", REFERENCE],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=_LIMIT_S,
            check=True,
        )
        return json.loads(ended.stdout)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        return {"error": f"the process that loads it failed: {error}".splitlines()[0], "again": True}


def _difference(
    tokenizer: Tokenizer, place: str, own: list[int], reference: list[int], version: str, withheld: bool
) -> InputError:
    first = next(
        (n for n, (a, b) in enumerate(zip(own, reference, strict=False)) if a != b), min(len(own), len(reference))
    )
    shown = [
        ", ".join(f"{token} {tokenizer.backend.id_to_token(token)!r}" for token in tokens[first : first + 8])
        or "nothing"
        for tokens in (own, reference)
    ]
    text = "" if withheld else f", after {tokenizer.decode(own[max(0, first - 8) : first], False)!r}"
    tokens = "" if withheld else f": {shown[0]} here; {shown[1]} in transformers"
    return InputError(
        f"the installed transformers {version} tokenizes differently, so other tools would use other tokens than the "
        "training",
        where=f"{place}, token {first + 1}{text}{tokens} ({tokenizer.directory})",
        remedy="set `tokenizer_class: PreTrainedTokenizerFast` in tokenizer_config.json (in a copy of the model), so "
        "that transformers uses tokenizer.json as it is, or save the tokenizer again with the installed transformers",
    )


def _content(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _hash(parts: Sequence[str]) -> str:
    return sha256(json.dumps(list(parts)).encode("utf-8")).hexdigest()
