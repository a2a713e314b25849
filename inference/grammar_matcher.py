"""Constrained generation: before each token, tokens that the grammar does not allow are masked.

llguidance walks the grammar and the vocabulary together (Willard and Louf 2023, arXiv:2307.09702, with an Earley parser
over the lexemes). It is imported on the first request with a grammar.

V vocabulary of the model, which may be padded beyond that of the tokenizer.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.grammar import Grammar
from tunesmith.inference.grammar_compiler import build_vocabulary, compile_grammar, first_line
from tunesmith.inference.types import RequestRejected

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MAX_VOCABULARIES, _MAX_MATCHERS = 4, 64
"""Cached vocabularies (about a second to build, tens of megabytes each) and compiled grammars."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_cache_lock = threading.Lock()
_vocabularies: OrderedDict[str, "LLTokenizer"] = OrderedDict()
_matchers: OrderedDict[tuple[str, str], "LLMatcher"] = OrderedDict()


class GrammarMatcher:
    """Position of one response in its grammar. Raises RequestRejected if the grammar is not supported."""

    def __init__(self, tokenizer: Tokenizer, grammar: Grammar):
        self._matcher = compiled(tokenizer, grammar).deep_copy()

    def allowed(self, logits_V: Tensor) -> Tensor:
        """The logits with disallowed tokens set to -inf. Raises RequestRejected if the grammar exceeds a limit."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        self._check()
        known_N = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool()
        allowed_V = torch.zeros(len(logits_V), dtype=torch.bool)
        known_N = known_N[: len(logits_V)]
        allowed_V[: len(known_N)] = known_N
        return logits_V.masked_fill(~allowed_V, -math.inf)

    def take(self, token: int) -> bool:
        """Advance by an allowed token. Returns whether the response is complete."""
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = first_line(self._matcher.get_error())
            raise RequestRejected("broken_grammar", f"cannot follow the grammar: {reason}", reason=reason)


def compiled(tokenizer: Tokenizer, grammar: Grammar) -> "LLMatcher":
    """The grammar, compiled now or before. May be called in several threads; other threads continue meanwhile. Raises
    RequestRejected if the grammar is not supported."""

    def build() -> "LLMatcher":
        return compile_grammar(_vocabulary(tokenizer), grammar)

    return _cached(_matchers, (tokenizer.fingerprint, grammar.lark), build, _MAX_MATCHERS)


def _vocabulary(tokenizer: Tokenizer) -> "LLTokenizer":
    def build() -> "LLTokenizer":
        return build_vocabulary(tokenizer.backend.to_str(), tokenizer.stop_token_ids)

    return _cached(_vocabularies, tokenizer.fingerprint, build, _MAX_VOCABULARIES)


def _cached(cache: "OrderedDict[Key, Value]", key: Key, build: Callable[[], Value], max_entries: int) -> Value:
    with _cache_lock:
        if key in cache:
            cache.move_to_end(key)
            return cache[key]
    value = build()
    with _cache_lock:
        cache[key] = value
        while len(cache) > max_entries:
            cache.popitem(last=False)
    return value
