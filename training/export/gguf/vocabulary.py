"""The tokenizer of a model as GGUF keys: tokens, types, merges or scores, special tokens, pre-tokenizer, chat template.

Read from tokenizer.json, which defines the tokens of the training; llama.cpp has the regular expressions of known
pre-tokenizers by name, so one that it does not have cannot be written.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from tokenizers import Tokenizer as Backend

from tunesmith.data.tokenization.tokenizer_files import read_json
from tunesmith.errors import InputError
from tunesmith.training.export.gguf.architectures import rejected

_ENDS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMES = {
    ("bytes",): "gpt-2",
    ("digit", "bytes"): "smollm",
    (_CONTRACTIONS + r"|\p{N}{1,3}" + _ENDS,): "dbrx",
    (_CONTRACTIONS + r"|\p{N}{1,3}" + _ENDS, "whole"): "llama-bpe",
    (_CONTRACTIONS + r"|\p{N}" + _ENDS,): "qwen2",
    (_TEKKEN, "whole"): "tekken",
}
"""llama.cpp's names by the pre-tokenizer's parts: `bytes` splits by GPT-2's expression, `digit` into single digits;
`whole` stands for tokens that are looked up before merges (ignore_merges)."""

_SPACE = "▁"


@dataclass(frozen=True)
class Vocabulary:
    """model: gpt2 (byte-level BPE) or llama (SentencePiece). tokens, types, scores by id; merges: of gpt2 only. ids: of
    bos, eos, ... flags: whether llama.cpp adds bos and eos to a text. stops: further tokens that end an answer."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    ids: Mapping[str, int]
    flags: Mapping[str, bool]
    merges: list[str] = field(default_factory=list)
    scores: list[float] | None = None
    space_prefix: bool | None = None
    stops: Sequence[int] = ()
    template: str | None = None

    def write(self, writer: GGUFWriter) -> None:
        """Write all keys of the tokenizer."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        for name, token in self.ids.items():
            if (add := getattr(writer, f"add_{name}_token_id", None)) is not None:
                add(token)
        for stop, add in zip(self.stops, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
            add(stop)
        for name, value in self.flags.items():
            getattr(writer, f"add_add_{name}_token")(value)
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        if self.template is not None:
            writer.add_chat_template(self.template)


def read_vocabulary(directory: Path, vocab_size: int) -> Vocabulary:
    """Return the vocabulary of a Hugging Face directory. vocab_size: rows of the model's embedding; rows without a
    token get an unused one. Raises InputError if llama.cpp cannot tokenize as tokenizer.json does."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise rejected("it has no tokenizer.json")
    backend, written = Backend.from_file(str(path)), json.loads(path.read_text(encoding="utf-8"))
    if written["model"].get("type") != "BPE":
        raise rejected(f"tokenizers of type {written['model'].get('type')} were not compared with llama.cpp")
    special = SpecialVocab(directory, load_merges=not written["model"].get("byte_fallback"), n_vocab=vocab_size)
    ids = dict(special.special_token_ids)
    stops = [token for token in _stops(directory) if token != ids.get("eos")]
    if len(stops) > 2:
        raise rejected(f"GGUF names at most three tokens that end an answer, the model has {len(stops) + 1}")
    tokens, types = _tokens(backend, written, vocab_size)
    shared: dict[str, Any] = {
        "tokens": tokens,
        "types": types,
        "ids": {name: token for name, token in ids.items() if name not in ("eot", "eom")},
        "flags": _flags(backend, ids),
        "stops": stops,
        "template": _template(special),
    }
    if written["model"].get("byte_fallback"):
        prefix = _space_prefix(written)
        scores = _scores(tokens, written["model"]["merges"])
        return Vocabulary("llama", "default", scores=scores, space_prefix=prefix, **shared)
    return Vocabulary("gpt2", pre_tokenizer_name(written), merges=special.merges, **shared)


def pre_tokenizer_name(written: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of a byte-level pre-tokenizer. written: of tokenizer.json. Raises InputError if llama.cpp
    does not have it."""
    normalizer = written.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":  # llama.cpp omits NFC: see docs/leaving.md
        raise rejected(f"its tokenizer normalizes text ({normalizer.get('type')}), llama.cpp's does not")
    pre = written.get("pre_tokenizer") or {}
    parts = tuple(_part(one) for one in (pre.get("pretokenizers") or [pre]))
    parts = tuple(part for part in parts if part)
    name = _NAMES.get((*parts, "whole") if written["model"].get("ignore_merges") else parts)
    if name is None:
        raise rejected(f"its pre-tokenizer is not one of llama.cpp's: {' + '.join(map(str, parts)) or 'none'}")
    return name


def _part(one: Mapping[str, Any]) -> str:
    kind = one.get("type")
    if kind == "ByteLevel":
        if one.get("add_prefix_space"):
            return "a space before each text"
        return "bytes" if one.get("use_regex", True) else ""
    if kind == "Digits":
        return "digit" if one.get("individual_digits") else "digits"
    if kind == "Split" and one.get("behavior") == "Isolated" and not one.get("invert"):
        return one["pattern"].get("Regex", "")
    return str(kind)


def _tokens(backend: Backend, written: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Tokens and types by id, as convert_hf_to_gguf writes them."""
    model = written["model"]
    tokens, types = [f"[PAD{number}]" for number in range(vocab_size)], [int(TokenType.UNUSED)] * vocab_size
    highest = max(backend.get_vocab(with_added_tokens=True).values())
    if highest >= vocab_size:
        raise rejected(f"its tokenizer has a token {highest}, its embedding {vocab_size} rows")
    for text, number in model["vocab"].items():
        tokens[number], types[number] = text, int(TokenType.NORMAL)
        if model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x"):
            types[number] = int(TokenType.BYTE)
        elif text == model.get("unk_token"):
            types[number] = int(TokenType.UNKNOWN)
    for added in written["added_tokens"]:
        number, text = added["id"], added["content"]
        if types[number] == int(TokenType.UNKNOWN):
            continue
        is_control = added["special"] or _looks_special(text)
        types[number] = int(TokenType.CONTROL if is_control else TokenType.USER_DEFINED)
        tokens[number] = text if is_control else text.replace(_SPACE, " ")
    return tokens, types


def _looks_special(text: str) -> bool:
    """Tokens that some models declare as ordinary, and that llama.cpp must not print."""
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        text.startswith(start) and text.endswith(end) for start, end in (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    )


def _scores(tokens: Sequence[str], merges: Sequence[Any]) -> list[float]:
    """SentencePiece's scores: llama.cpp merges the pair with the highest one first, tokenizer.json has their order."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks[token]) if token in ranks else -1e6 for token in tokens]


def _space_prefix(written: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text."""
    described = json.dumps([written.get("normalizer"), written.get("pre_tokenizer")])
    if '"Prepend"' in described:
        return True
    return '"Metaspace"' in described and '"prepend_scheme": "never"' not in described


def _flags(backend: Backend, ids: Mapping[str, int]) -> dict[str, bool]:
    """Whether tokenizer.json adds these tokens to a text."""
    plain, whole = backend.encode("a", add_special_tokens=False).ids, backend.encode("a").ids
    before = whole[: len(whole) - len(plain)] if whole[-1:] == plain[-1:] else whole[:1]
    after = whole[len(before) + len(plain) :] if whole != plain else []
    if before not in ([], [ids.get("bos")]) or after not in ([], [ids.get("eos")]):
        raise rejected("its tokenizer adds other tokens than bos and eos to a text")
    return {"bos": bool(before), "eos": bool(after)}


def _stops(directory: Path) -> list[int]:
    declared = read_json(directory / "generation_config.json").get("eos_token_id")
    return [declared] if isinstance(declared, int) else list(declared or ())


def _template(special: SpecialVocab) -> str | None:
    template = special.chat_template
    if template is None or isinstance(template, str):
        return template
    named = {entry["name"]: entry["template"] for entry in template}
    if "default" not in named:
        raise InputError(
            "the model has several chat templates and none is named default",
            where="--format gguf",
            remedy="set model.chat_template in the recipe",
        )
    return named["default"]
