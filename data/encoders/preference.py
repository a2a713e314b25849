"""Encode preference rows to two documents: the conversation with the chosen answer, then with the rejected one.

    {"prompt", "chosen", "rejected"}     strings, or lists of messages; without "prompt", both are full conversations
    {"input": {"messages", "tools"?}, "preferred_output": [message], "non_preferred_output": [message]}       OpenAI

With a chat template, strings become chats; without one, prompt and completion. Only the answers are trained.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from tunesmith.data.encoders.language_model import LanguageModelEncoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.outcomes import DROPPED, KEPT, REJECTED, TRUNCATED, Prepared
from tunesmith.data.refusal import Refusal, name_of
from tunesmith.data.rows.answers import answered_row
from tunesmith.data.rows.formats import Text, context_of, require_text_only
from tunesmith.data.tokenization.tokenizer import Tokenizer

_Side = dict[str, Any]
"""A row of the task chat, or of the task completion."""


class Pair(NamedTuple):
    """prompt: a string or messages, the context of both answers. better, worse: strings or messages."""

    prompt: Any
    tools: Any
    better: Any
    worse: Any


class PreferenceEncoder:
    """Encoder of rows with two answers to two documents each: documents 2i and 2i + 1 of a shard are a pair."""

    def __init__(self, tokenizer: Tokenizer, spec: EncodingSpec):
        self.chats = tokenizer.template is not None
        self.inner = LanguageModelEncoder(tokenizer, replace(spec, task="chat" if self.chats else "completion"))
        self.tokenizer, self.spec = tokenizer, spec

    def encode(self, values: Iterable[Any]) -> list[Prepared]:
        """Encode rows; return one result per value, in order. values: parsed rows, or a Refusal for an invalid row."""
        read = [self._read(value) for value in values]
        sides = [side for row in read for side in ((row, row) if isinstance(row, Refusal) else row)]
        encoded = iter(self.inner.encode(sides))
        return [_joined(next(encoded), next(encoded)) for _ in read]

    def _read(self, value: Any) -> tuple[_Side, _Side] | Refusal:
        if isinstance(value, Refusal):
            return value
        try:
            if type(value) is not dict:
                raise Refusal(
                    "not_an_object", f"the row is {name_of(value)}, not an object", 'write each row as {"key": ...}'
                )
            require_text_only(value)
            pair = openai_pair(value) if "preferred_output" in value else _plain(value)
            prompt, better, worse = pair.prompt, pair.better, pair.worse
            if better == worse:
                raise Refusal("equal_answers", "both answers are equal", "remove the row")
            context = context_of(value) | ({"tools": pair.tools} if pair.tools else {})
            sides = [answered_row(prompt, answer, context, has_template=self.chats) for answer in (better, worse)]
            return sides[0], sides[1]
        except Refusal as refusal:
            return refusal


def _plain(value: Mapping[str, Any]) -> Pair:
    for key in ("chosen", "rejected"):
        if value.get(key) in (None, "", []):
            raise Refusal("missing_key", f'"{key}" is missing or empty', 'a row has "prompt", "chosen" and "rejected"')
    better, worse, prompt = value["chosen"], value["rejected"], value.get("prompt")
    if prompt is not None:
        if not isinstance(prompt, (str, list)) or not all(isinstance(side, (str, list)) for side in (better, worse)):
            raise Refusal(
                "not_text", "prompt and answers are neither strings nor lists of messages", "write strings, or messages"
            )
        better, worse = (_without_prompt(prompt, side) for side in (better, worse))
        return Pair(prompt, value.get("tools"), better, worse)
    if not (isinstance(better, list) and isinstance(worse, list)):
        raise Refusal("missing_key", '"prompt" is missing', 'add "prompt", or write both answers as full conversations')
    same = 0
    while same < min(len(better), len(worse)) and better[same] == worse[same]:
        same += 1
    same = min(same, len(better) - 1, len(worse) - 1)
    if same < 1:
        raise Refusal(
            "different_prompts", "the two conversations begin differently", "they may differ only in the answer"
        )
    return Pair(better[:same], value.get("tools"), better[same:], worse[same:])


def _without_prompt(prompt: Any, answer: Any) -> Any:
    """The answer's own messages: a whole conversation repeats the prompt, which would be trained on twice."""
    if not isinstance(answer, list):
        return answer
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if len(answer) > len(turns) and answer[: len(turns)] == turns:
        return answer[len(turns) :]
    first = answer[0]
    if isinstance(first, dict) and first.get("role") in ("system", "developer", "user"):
        raise Refusal(
            "different_prompts",
            'the answers are conversations that do not begin with "prompt"',
            'remove "prompt", or write only the messages of each answer',
        )
    return answer


def openai_pair(value: Mapping[str, Any]) -> Pair:
    """Read a row in OpenAI's format; prompt and answers are lists of messages. Raises Refusal."""
    shared = value.get("input")
    if not isinstance(shared, dict) or not isinstance(shared.get("messages"), list) or not shared["messages"]:
        raise Refusal(
            "no_messages",
            '"input" contains no messages',
            'write {"input": {"messages": [...]}, "preferred_output": [...]}',
        )
    for key in ("preferred_output", "non_preferred_output"):
        if not isinstance(value.get(key), list) or not value[key]:
            raise Refusal(
                "no_messages", f'"{key}" is not a list with at least one message', 'write [{"role": "assistant", ...}]'
            )
    return Pair(shared["messages"], shared.get("tools"), value["preferred_output"], value["non_preferred_output"])


def _joined(better: Prepared, worse: Prepared) -> Prepared:
    """Combine the results of both answers: the less favorable outcome of the two, and one key for both."""
    key = Text(better.key.hex() + worse.key.hex()).key() if better.key and worse.key else b""
    for side, name in ((better, "the chosen answer"), (worse, "the rejected answer")):
        if side.outcome == REJECTED:
            shared = better.reason == worse.reason
            reason = side.reason if shared else f"{name}: {side.reason}"
            return Prepared(REJECTED, [], key, reason=reason, remedy=side.remedy, code=side.code)
    lost, lost_supervised = (
        better.lost_tokens + worse.lost_tokens,
        better.lost_supervised + worse.lost_supervised,
    )
    reason = better.reason or worse.reason
    if DROPPED in (better.outcome, worse.outcome):
        return Prepared(DROPPED, [], key, lost, lost_supervised, reason)
    documents = [*better.documents, *worse.documents]
    outcome = TRUNCATED if TRUNCATED in (better.outcome, worse.outcome) else KEPT
    return Prepared(outcome, documents, key, lost, lost_supervised, reason if outcome == TRUNCATED else "")
