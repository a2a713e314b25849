"""Compiles grammars for constrained generation with llguidance, within limits. Imports llguidance on first use, and
never torch: the processes that try grammars import nothing else."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunesmith.inference.grammar import Grammar
from tunesmith.inference.types import RequestRejected

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MAX_LEXER_STATES = 50_000
"""Lexer states of a grammar, at about 2 kB each; patterns that need more are rejected."""


def build_vocabulary(tokenizer_json: str, stop_ids: Sequence[int]) -> "LLTokenizer":
    """Return llguidance's form of a tokenizer: about a second, tens of megabytes.

    tokenizer_json: content of a tokenizer.json. Raises RequestRejected if it is not supported.
    """
    try:
        from llguidance import LLTokenizer
    except ImportError:
        raise RequestRejected("missing_llguidance", "grammars need llguidance, which is not installed") from None
    try:
        return LLTokenizer(tokenizer_json, eos_token=list(stop_ids))
    except Exception as error:  # llguidance raises errors of its Rust code as ValueError or Exception
        reason = first_line(str(error))
        message = f"grammars are not supported for this tokenizer: {reason}"
        raise RequestRejected("unsupported_grammar", message, reason=reason) from error


def compile_grammar(vocabulary: "LLTokenizer", grammar: Grammar) -> "LLMatcher":
    """Return a matcher at the beginning of the grammar. Raises RequestRejected if a schema is not supported.

    A hostile schema can take hours and all memory here: `grammar_trials.py` tries it in another process first.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
    for parameter, name, schema in grammar.schemas:
        alone = f"start: %json {schema}\n"
        is_invalid, messages = LLMatcher.validate_grammar_with_warnings(alone, vocabulary, limits=limits)
        if is_invalid:
            raise invalid_schema(parameter, name, messages[0])
    matcher = LLMatcher(vocabulary, grammar.lark, limits=limits, log_level=0)
    if matcher.is_error():
        raise invalid_schema(grammar.schemas[0][0] if grammar.schemas else None, None, matcher.get_error())
    return matcher


def invalid_schema(parameter: str | None, schema: str | None, error: str) -> RequestRejected:
    """Return the rejection of a schema. schema: its name; None if the error concerns the whole grammar."""
    reason = first_line(error)
    message = f"invalid schema for {schema or parameter}: {reason}"
    return RequestRejected("invalid_schema", message, parameter=parameter, schema=schema, reason=reason)


def first_line(message: str) -> str:
    """The reason in an llguidance error, without the position in a grammar that the caller never sees."""
    lines = message.strip().splitlines()
    reason = next((line for line in lines if line.startswith("error: ")), lines[0])
    return reason.removeprefix("error: ").rpartition("failed to compile JSON schema: ")[2].rstrip(".")[:500]
