"""Pre-token cache: fast tokenization with byte-level BPE tokenizers, with identical tokens.

A byte-level BPE tokenizer splits a text at its added tokens, splits the rest into pre-tokens (words) by a pattern, and
tokenizes each pre-token independently. Pre-tokens repeat within a corpus, so each is tokenized once by the tokenizer's
model and looked up afterwards. The pattern is translated for ASCII, where its character classes are known exactly; all
other texts and all other kinds of tokenizers use the tokenizer directly.

Threads may share a cache: an entry depends only on its key, and an entry that another thread dropped is recomputed.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from typing import Any

from tokenizers import Tokenizer as Backend

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of ByteLevel (tokenizers, pre_tokenizers/byte_level.rs)."""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
SPLITS = (GPT2, LLAMA3, QWEN2)

# The pattern of GPT-2 with individual digits: every digit is a pre-token, and a pre-token ends before a digit.
_DIGITS_APART = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
_WORDS_KEPT = 1 << 17  # about 25 MB
_LONGEST_KEPT = 64  # characters: longer ones rarely repeat
_PROBE = "I'll've IT'S 3.14 12345 x=1;\n\n\tif (a  != b):\r\n   ok? \x0b\x1c~~ \n \n9 9a a9 _a 'd 'D !\n\n! \t\n  end  "


class PretokenCache:
    """Cached tokenizer for ASCII texts. Created with `make_pretoken_cache`."""

    def __init__(self, backend: Backend, pattern: str, added: dict[str, int]):
        self._tokens, self._sizes = _TokensOfWord(backend), _SizeOfToken(backend)
        self._words = re.compile(pattern, re.ASCII).findall
        longest_first = sorted(added, key=len, reverse=True)  # as in the tokenizer: leftmost, then longest
        self._added = added
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split if added else None

    def encode(self, text: str, places: Sequence[int] = ()) -> tuple[list[int], list[int] | None]:
        """Return the tokens of an ASCII text, and the token index of each of the ascending `places` (characters); None
        instead of the indices if one of the places is inside a token."""
        ids: list[int] = []
        before: list[int] | None = []
        places_left, begin = list(places), 0
        for number, part in enumerate(self._cut(text) if self._cut else (text,)):
            end = begin + len(part)
            here = []
            while places_left and places_left[0] < end:
                here.append(places_left.pop(0) - begin)
            if not here:
                ids.extend((self._added[part],) if number % 2 else self._of(self._words(part)))
            else:
                tokens = [self._added[part]] if number % 2 else list(self._of(self._words(part)))
                edges = self._edges(tokens, [len(part)] if number % 2 else None, here)
                before = None if before is None or edges is None else before + [len(ids) + edge for edge in edges]
                ids.extend(tokens)
            begin = end
        return ids, None if before is None else before + [len(ids)] * len(places_left)

    def _of(self, words: list[str]) -> Iterable[int]:
        return chain.from_iterable(map(self._tokens.__getitem__, words))

    def _edges(self, tokens: list[int], sizes: list[int] | None, places: list[int]) -> list[int] | None:
        """Return the token index of each place; None if one is inside a token. sizes: characters of each token."""
        edges = [0, *accumulate(sizes or map(self._sizes.__getitem__, tokens))]
        indexes = [bisect_left(edges, place) for place in places]
        return indexes if all(edges[edge] == place for edge, place in zip(indexes, places, strict=True)) else None


class _TokensOfWord(dict[str, tuple[int, ...]]):
    """The tokens of each word seen so far."""

    def __init__(self, backend: Backend):
        self._model = backend.model

    def __missing__(self, word: str) -> tuple[int, ...]:
        tokens = tuple(token.id for token in self._model.tokenize(word.translate(_SHOWN)))
        if len(word) <= _LONGEST_KEPT:
            if len(self) >= _WORDS_KEPT:
                self.clear()
            self[word] = tokens
        return tokens


class _SizeOfToken(dict[int, int]):
    """The size in bytes of each token seen so far: each character of the vocabulary represents one byte."""

    def __init__(self, backend: Backend):
        self._backend = backend

    def __missing__(self, token: int) -> int:
        self[token] = len(self._backend.id_to_token(token) or "")
        return self[token]


# The characters that represent ASCII bytes in a byte-level vocabulary (GPT-2's table): non-printing bytes map to code
# points from 256.
_SHOWN = {byte: 256 + byte for byte in range(33)} | {127: 256 + 33}


def make_pretoken_cache(backend: Backend) -> PretokenCache | None:
    """Create a cache; None if the tokenizer is not supported, or if a probe text gives different tokens."""
    described = json.loads(backend.to_str())
    pattern = _pattern_of(described.get("pre_tokenizer") or {})
    model = described["model"]
    if pattern is None or described.get("normalizer") is not None:
        return None
    if model.get("type") != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix"):
        return None
    if model.get("end_of_word_suffix") or model.get("byte_fallback") or model.get("unk_token"):
        return None
    added = backend.get_added_tokens_decoder()
    if any(token.lstrip or token.rstrip or token.single_word for token in added.values()):
        return None
    cache = PretokenCache(backend, pattern, {token.content: number for number, token in added.items()})
    probe = _PROBE + "".join(chr(character) for character in range(128)) + _PROBE.join(cache._added)
    expected = backend.encode(probe, add_special_tokens=False).ids
    return cache if cache.encode(probe)[0] == expected else None


def _pattern_of(pre_tokenizer: dict[str, Any]) -> str | None:
    """Return the pattern of a pre-tokenizer, translated for ASCII; None if it is not supported."""
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    *first, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if not first:
        return _for_ascii(GPT2) if last.get("use_regex", True) else None
    if len(first) > 1:
        return None
    if first[0] == {"type": "Digits", "individual_digits": True} and last.get("use_regex", True):
        return _for_ascii(_DIGITS_APART)
    regex = (first[0].get("pattern") or {}).get("Regex")
    isolated = first[0].get("type") == "Split" and first[0].get("behavior") == "Isolated" and not first[0].get("invert")
    return _for_ascii(regex) if isolated and regex in SPLITS and not last.get("use_regex", True) else None


def _for_ascii(pattern: str) -> str:
    """Translate a pattern for ASCII text: character classes occur inside brackets or alone."""
    in_brackets = re.sub(r"\[([^\]]*)\]", lambda match: f"[{_as_ranges(match[1])}]", pattern)
    return in_brackets.replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]")


def _as_ranges(characters: str) -> str:
    return characters.replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9")
