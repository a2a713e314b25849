"""Constrained generation: before each token, tokens that the grammar does not allow are masked.

llguidance walks the grammar and the vocabulary together (Willard and Louf 2023, arXiv:2307.09702, with an Earley parser
over the lexemes). It is imported on the first request with a grammar.

V vocabulary of the model, which may be padded beyond that of the tokenizer.
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

_MAX_LEXER_STATES = 50_000
"""Lexer states of a grammar, at about 2 kB each; patterns that need more are rejected."""
_MAX_VOCABULARIES, _MAX_MATCHERS = 4, 64
"""Cached vocabularies (about a second to build, tens of megabytes each) and compiled grammars."""

_vocabularies: OrderedDict[str, "LLTokenizer"] = OrderedDict()
_matchers: OrderedDict[tuple[str, str], "LLMatcher"] = OrderedDict()


class GrammarMatcher:
    """Position of one response in its grammar. Raises RequestRejected if the grammar is not supported."""

    def __init__(self, tokenizer: Tokenizer, grammar: Grammar):
        key = tokenizer.fingerprint, grammar.lark
        if key not in _matchers:
            _keep(_matchers, key, _compile(tokenizer, grammar), _MAX_MATCHERS)
        _matchers.move_to_end(key)
        self._matcher = _matchers[key].deep_copy()

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
            reason = _first_line(self._matcher.get_error())
            raise RequestRejected("broken_grammar", f"cannot follow the grammar: {reason}", reason=reason)


def _compile(tokenizer: Tokenizer, grammar: Grammar) -> "LLMatcher":
    try:
        from llguidance import LLMatcher, LLParserLimits
    except ImportError:
        raise RequestRejected("missing_llguidance", "grammars need llguidance, which is not installed") from None
    vocabulary = _vocabulary(tokenizer)
    limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
    for parameter, name, schema in grammar.schemas:
        alone = f"start: %json {schema}\n"
        is_invalid, messages = LLMatcher.validate_grammar_with_warnings(alone, vocabulary, limits=limits)
        if is_invalid:
            raise _invalid_schema(parameter, name, messages[0])
    matcher = LLMatcher(vocabulary, grammar.lark, limits=limits, log_level=0)
    if matcher.is_error():
        raise _invalid_schema(grammar.schemas[0][0] if grammar.schemas else None, None, matcher.get_error())
    return matcher


def _invalid_schema(parameter: str | None, schema: str | None, error: str) -> RequestRejected:
    """schema: its name; None if the error concerns the whole grammar."""
    reason = _first_line(error)
    message = f"invalid schema for {schema or parameter}: {reason}"
    return RequestRejected("invalid_schema", message, parameter=parameter, schema=schema, reason=reason)


def _vocabulary(tokenizer: Tokenizer) -> "LLTokenizer":
    from llguidance import LLTokenizer

    if tokenizer.fingerprint not in _vocabularies:
        try:
            vocabulary = LLTokenizer(tokenizer.backend.to_str(), eos_token=list(tokenizer.stop_token_ids))
        except Exception as error:  # llguidance raises errors of its Rust code as ValueError or Exception
            reason = _first_line(str(error))
            message = f"grammars are not supported for this tokenizer: {reason}"
            raise RequestRejected("unsupported_grammar", message, reason=reason) from error
        _keep(_vocabularies, tokenizer.fingerprint, vocabulary, _MAX_VOCABULARIES)
    _vocabularies.move_to_end(tokenizer.fingerprint)
    return _vocabularies[tokenizer.fingerprint]


def _keep(cache: OrderedDict, key: object, value: object, max_entries: int) -> None:
    cache[key] = value
    while len(cache) > max_entries:
        cache.popitem(last=False)


def _first_line(message: str) -> str:
    """The reason in an llguidance error, without the position in a grammar that the caller never sees."""
    lines = message.strip().splitlines()
    reason = next((line for line in lines if line.startswith("error: ")), lines[0])
    return reason.removeprefix("error: ").rpartition("failed to compile JSON schema: ")[2].rstrip(".")[:500]
