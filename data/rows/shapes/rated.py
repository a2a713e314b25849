"""Rows with one answer and its rating.

    {"prompt", "completion", "label"}                             texts, or lists of messages
    {"messages" | "conversations", "label"}                       the last message is the answer
    {"messages" | "conversations", "completion", "label"}
    {"instruction", "input"?, "history"?, "output", "label"}      LLaMA-Factory

"kto_tag" is LLaMA-Factory's name of the label. A label is true or false, 1 or 0, or one of these as text.
"""

from collections.abc import Mapping
from typing import Any

from tunesmith.data.named_label import NamedLabel
from tunesmith.data.refusal import Refusal, keys_of, name_of
from tunesmith.data.rows.answers import is_answer
from tunesmith.data.rows.shapes.parts import part_of, prompt_of

LABEL_KEYS = ("label", "kto_tag")
_RATINGS = {"true": True, "1": True, "false": False, "0": False}
_FORM = (
    'a row has "label" with "prompt" and "completion", with "instruction" and "output", or with "messages" or '
    '"conversations"'
)


def read_rated(value: Mapping[str, Any], *, has_template: bool) -> tuple[Any, Any, bool]:
    """Return prompt, answer (strings or lists of messages, not validated) and rating of a row. has_template: whether
    texts become messages. Raises Refusal."""
    label = _label(value)
    prompt, answer = _prompt_and_answer(value, has_template)
    for key, part in (("prompt", prompt), ("completion", answer)):
        if part in (None, "", []):
            raise Refusal("missing_key", f'"{key}" is missing or empty', f"{_FORM}; {keys_of(value)}")
        if not isinstance(part, (str, list)):
            reason = f'"{key}" is neither a string nor a list of messages'
            raise Refusal("not_text", reason, "write a string, or a list of messages")
    if isinstance(answer, list) and not all(map(is_answer, answer)):
        reason = "the answer contains a message with a role other than assistant"
        raise Refusal("unknown_role", reason, "use only assistant messages in the answer")
    return prompt, answer, label


def _label(value: Mapping[str, Any]) -> bool:
    labels = {key: value[key] for key in LABEL_KEYS if value.get(key) is not None}
    if not labels:
        raise Refusal("missing_key", '"label" is missing', f"{_FORM}; {keys_of(value)}")
    ratings = {_rating(key, label) for key, label in labels.items()}
    if len(ratings) > 1:
        raise Refusal("invalid_label", '"label" and "kto_tag" contradict each other', "keep one of them")
    return ratings.pop()


def _rating(key: str, label: Any) -> bool:
    if isinstance(label, NamedLabel) and label.name.lower() in _RATINGS:
        label = label.name
    if isinstance(label, (bool, int, float)) and label in (0, 1):
        return bool(label)
    rating = _RATINGS.get(label.strip().lower()) if isinstance(label, str) else None
    if rating is None:
        remedy = "write true or 1 for a good answer, false or 0 for a bad one"
        raise Refusal("invalid_label", f'"{key}" is {name_of(label)}, not a boolean', remedy)
    return rating


def _prompt_and_answer(value: Mapping[str, Any], has_template: bool) -> tuple[Any, Any]:
    prompt = prompt_of(value, has_template=has_template)
    if value.get("prompt") is None and value.get("instruction") is not None:
        return prompt, part_of(value.get("output", value.get("completion")), "output")
    answer = part_of(value.get("completion"), "completion")
    if value.get("prompt") is None and answer is None and isinstance(prompt, list):
        return prompt[:-1], prompt[-1:]
    return prompt, answer
