"""Keeps an answer to its grammar: before each token, those that cannot follow are ruled out.

llguidance walks the grammar and the vocabulary together (Willard and Louf 2023, arXiv:2307.09702, with an Earley parser
over the lexemes); it is loaded with the first answer that has a grammar.

V vocabulary of the model, which may be padded beyond the tokenizer's.
"""

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.grammar import Grammar
from tunesmith.inference.types import RequestRejected

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MOST_STATES = 50_000
"""Of a grammar's lexer, at about 2 kB each: patterns that need more are refused."""
_VOCABULARIES, _BEGINNINGS = 4, 64
"""Kept in memory: walks over a vocabulary (a second to make, some tens of megabytes), and grammars that were read."""

_vocabularies: OrderedDict[str, "LLTokenizer"] = OrderedDict()
_beginnings: OrderedDict[tuple[str, str], "LLMatcher"] = OrderedDict()


class GrammarMatcher:
    """Where one answer stands in its grammar. Raises RequestRejected where the grammar cannot be kept."""

    def __init__(self, tokenizer: Tokenizer, grammar: Grammar):
        key = tokenizer.fingerprint, grammar.lark
        if key not in _beginnings:
            _keep(_beginnings, key, _begin(tokenizer, grammar), _BEGINNINGS)
        _beginnings.move_to_end(key)
        self._matcher = _beginnings[key].deep_copy()

    def allowed(self, logits_V: Tensor) -> Tensor:
        """The logits with those tokens ruled out that cannot follow. Raises RequestRejected where the grammar turns out
        to be too large to walk."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        self._check()
        known_N = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool()
        allowed_V = torch.zeros(len(logits_V), dtype=torch.bool)
        known_N = known_N[: len(logits_V)]
        allowed_V[: len(known_N)] = known_N
        return logits_V.masked_fill(~allowed_V, -math.inf)

    def take(self, token: int) -> bool:
        """Go on behind an allowed token; whether the answer is whole now, and nothing may follow it."""
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _first_line(self._matcher.get_error())
            raise RequestRejected(
                "broken_grammar", f"the answer cannot be kept to its grammar: {reason}", reason=reason
            )


def _begin(tokenizer: Tokenizer, grammar: Grammar) -> "LLMatcher":
    try:
        from llguidance import LLMatcher, LLParserLimits
    except ImportError:
        raise RequestRejected("missing_llguidance", "grammars need llguidance, which is not installed") from None
    vocabulary = _vocabulary(tokenizer)
    limits = LLParserLimits(max_lexer_states=_MOST_STATES, verbose_errors=False)
    for parameter, name, schema in grammar.schemas:
        alone = f"start: %json {schema}\n"
        wrong, found = LLMatcher.validate_grammar_with_warnings(alone, vocabulary, limits=limits)
        if wrong:
            raise _invalid_schema(parameter, name, found[0])
    matcher = LLMatcher(vocabulary, grammar.lark, limits=limits, log_level=0)
    if matcher.is_error():
        raise _invalid_schema(grammar.schemas[0][0] if grammar.schemas else None, None, matcher.get_error())
    return matcher


def _invalid_schema(parameter: str | None, schema: str | None, error: str) -> RequestRejected:
    """schema: its name; None where the grammar as a whole is at fault."""
    reason = _first_line(error)
    message = f"the schema of {schema or parameter} cannot be used: {reason}"
    return RequestRejected("invalid_schema", message, parameter=parameter, schema=schema, reason=reason)


def _vocabulary(tokenizer: Tokenizer) -> "LLTokenizer":
    from llguidance import LLTokenizer

    if tokenizer.fingerprint not in _vocabularies:
        try:
            made = LLTokenizer(tokenizer.backend.to_str(), eos_token=list(tokenizer.stop_token_ids))
        except Exception as error:  # llguidance raises what its Rust side says, as ValueError or plain Exception
            reason = _first_line(str(error))
            message = f"this model's tokens cannot be kept to a grammar: {reason}"
            raise RequestRejected("unsupported_grammar", message, reason=reason) from error
        _keep(_vocabularies, tokenizer.fingerprint, made, _VOCABULARIES)
    _vocabularies.move_to_end(tokenizer.fingerprint)
    return _vocabularies[tokenizer.fingerprint]


def _keep(kept: OrderedDict, key: object, value: object, most: int) -> None:
    kept[key] = value
    while len(kept) > most:
        kept.popitem(last=False)


def _first_line(words: str) -> str:
    """Without the place in a grammar that the caller never saw; of a pattern's error, the line that says why."""
    lines = words.strip().splitlines()
    said = next((line for line in lines if line.startswith("error: ")), lines[0])
    return said.removeprefix("error: ").rpartition("failed to compile JSON schema: ")[2].rstrip(".")[:500]
