"""Rows with two answers.

    {"prompt", "chosen", "rejected"}                                     texts, or lists of messages
    {"chosen", "rejected"}                                               whole conversations: lists, or text as in HH
    {"conversations" | "messages", "chosen": {...}, "rejected": {...}}   LLaMA-Factory: one message or turn each
    {"instruction", "input"?, "history"?, "chosen", "rejected"}          LLaMA-Factory: texts
    {"input": {"messages", "tools"?}, "preferred_output": [message], "non_preferred_output": [message]}       OpenAI

A list has messages ({"role", "content"}) or turns ({"from", "value"}).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.shapes.dialogs import dialog_messages, dialog_texts, is_dialog
from tunesmith.data.rows.shapes.parts import is_whole, part_of, prompt_of

_FORM = (
    'a row has "chosen" and "rejected" with "prompt", "instruction", "conversations" or "messages", or as whole '
    "conversations"
)


class Pair(NamedTuple):
    """prompt: a string or messages, the context of both answers. better, worse: strings or messages."""

    prompt: Any
    tools: Any
    better: Any
    worse: Any


def read_pair(value: Mapping[str, Any], *, has_template: bool) -> Pair:
    """Read a row in any format; messages are not validated. has_template: whether texts become messages. Raises
    Refusal."""
    if "preferred_output" in value:
        return openai_pair(value)
    for key in ("chosen", "rejected"):
        if value.get(key) in (None, "", []):
            raise Refusal("missing_key", f'"{key}" is missing or empty', _FORM)
    better, worse = (part_of(value[key], key) for key in ("chosen", "rejected"))
    prompt = _prompt(value, better, worse, has_template)
    if prompt is not None:
        if not isinstance(prompt, (str, list)) or not all(isinstance(side, (str, list)) for side in (better, worse)):
            raise Refusal(
                "not_text", "prompt and answers are neither strings nor lists of messages", "write strings, or messages"
            )
        better, worse = (_without_prompt(prompt, side) for side in (better, worse))
        return Pair(prompt, value.get("tools"), better, worse)
    if is_dialog(better) and is_dialog(worse):
        if not has_template:
            text, better, worse = dialog_texts(better, worse)
            return Pair(text, value.get("tools"), better, worse)
        better, worse = dialog_messages(better), dialog_messages(worse)
    return _split(value, better, worse)


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


def _prompt(value: Mapping[str, Any], better: Any, worse: Any, has_template: bool) -> Any:
    """Return the prompt; None if the answers contain it. Next to two whole conversations only "prompt" is one."""
    if value.get("prompt") is None and is_whole(better) and is_whole(worse):
        return None
    return prompt_of(value, has_template=has_template)


def _split(value: Mapping[str, Any], better: Any, worse: Any) -> Pair:
    """Split two conversations where they begin to differ."""
    if not (isinstance(better, list) and isinstance(worse, list)):
        raise Refusal("missing_key", '"prompt" is missing', f'add "prompt": {_FORM}')
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
    if is_whole(answer):
        raise Refusal(
            "different_prompts",
            'the answers are conversations that do not begin with "prompt"',
            'remove "prompt", or write only the messages of each answer',
        )
    return answer
