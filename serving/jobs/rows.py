"""Validation of a job's training and validation files, line by line, with the number of the example and message.

    chat        {"messages": [...], "tools"?, "parallel_tool_calls"?}
    completion  {"prompt", "completion"}
    preference  {"input": {"messages": [...]}, "preferred_output": [message], "non_preferred_output": [message]}

The row formats are defined in data/; here errors are reported in the API's terms, with numbers starting at 1.
"""

from collections.abc import Iterator
from pathlib import Path

from tunesmith.configs.tasks import TASKS
from tunesmith.data.readers.sources import Line, cut, read
from tunesmith.data.refusal import Refusal, name_of
from tunesmith.data.rows.formats import read_row
from tunesmith.data.rows.messages import SUPERVISION_KEYS, read_messages
from tunesmith.data.rows.shapes.preference import openai_pair
from tunesmith.errors import InputError
from tunesmith.serving.jobs.fault import JobFault

MIN_EXAMPLES = 10
MAX_REPORTED = 3
"""Limit of invalid examples in an error message."""
KINDS = {"messages": "chat", "input": "preference", "preferred_output": "preference", "prompt": "completion"}
"""Key of a row: kind of the row."""
METHODS = {"supervised": ("chat", "completion"), "dpo": ("preference",)}
ANSWERS = {"preferred_output": "the better answer", "non_preferred_output": "the worse answer"}


class _RejectedAnswer(Refusal):
    """An invalid conversation with one of the two answers. key: of the answer. num_before: messages before it."""

    def __init__(self, refusal: Refusal, key: str, num_before: int):
        reason = f"{ANSWERS[key]}: {refusal.reason}"
        super().__init__(refusal.code, reason, refusal.remedy, message=refusal.message, fault=refusal.fault)
        self.key, self.num_before = key, num_before


def check_rows(path: Path, method: str, param: str, kind: str | None = None) -> tuple[str, int]:
    """Validate a file; returns (kind of its rows, number of rows).

    param: training_file or validation_file. kind: required kind, that of the training file. Raises JobFault:
    `invalid_training_file` (`invalid_validation_file`) for an invalid line or one of another kind, `invalid_n_examples`
    for a training file with fewer than ten examples.
    """
    errors: list[str] = []
    number = 0
    for number, line in enumerate(_lines(path, param), start=1):
        try:
            kind = _checked(line, method, kind)
        except Refusal as refusal:
            errors.append(_described(refusal, number))
            if len(errors) == MAX_REPORTED:
                break
    if errors:
        raise invalid(param, errors)
    if param == "training_file" and number < MIN_EXAMPLES:
        raise JobFault(
            "invalid_n_examples",
            f"Training file has {number} example(s), but must have at least {MIN_EXAMPLES} examples",
            param,
        )
    assert kind is not None  # an empty file was rejected before
    return kind, number


def invalid(param: str, errors: list[str]) -> JobFault:
    name = param.replace("_", " ")
    return JobFault(
        f"invalid_{param}",
        f"The job failed due to an invalid {name}. Invalid file format. {' '.join(errors)}",
        param,
    )


def describe(number: int, problem: str, remedy: str) -> str:
    """The error of an example, in the API's terms. number: from 1."""
    return f"Example {number}: {problem}; {remedy}."


def _described(refusal: Refusal, number: int) -> str:
    """Like `describe`, with the number of the message if the error is in one: `Example 3, message 2: ...`."""
    if refusal.message is None:
        return describe(number, refusal.reason, refusal.remedy)
    where = f"message {refusal.message + 1}"
    if isinstance(refusal, _RejectedAnswer) and refusal.message >= refusal.num_before:
        where = refusal.key
    return f"Example {number}, {where}: {refusal.fault}; {refusal.remedy}."


def _lines(path: Path, param: str) -> Iterator[Line]:
    try:
        for shard in cut(path):
            yield from read(shard)
    except InputError as error:
        raise invalid(param, [f"{error.what}."]) from error


def _checked(line: Line, method: str, kind: str | None) -> str:
    """The kind of a valid row. Raises Refusal, also if it differs from `kind`, that of earlier rows."""
    value = line.value
    if isinstance(value, Refusal):
        raise value
    if type(value) is not dict:
        raise Refusal(
            "not_an_object", f"the row is {name_of(value)}, not an object", 'write each row as {"messages": [...]}'
        )
    row_kind = next((name for key, name in KINDS.items() if key in value), None)
    allowed = METHODS[method]
    if row_kind is None:
        keys = {"chat": '"messages"', "completion": '"prompt" and "completion"', "preference": '"input"'}
        raise Refusal(
            "missing_key", f"the row has no {' or '.join(keys[name] for name in allowed)}", "see the formats of the API"
        )
    if row_kind not in allowed:
        raise Refusal(
            "other_task",
            f"the row is in the {row_kind} format, but the method {method} takes {' or '.join(allowed)}",
            "choose another method or file",
        )
    if kind is not None and row_kind != kind:
        raise Refusal(
            "mixed_formats",
            f"the row is in the {row_kind} format, earlier ones in the {kind} format",
            "use a single format",
        )
    if "functions" in value:
        raise Refusal("unsupported_key", '"functions" is deprecated', 'use "tools" instead')
    if TASKS[row_kind].is_paired:
        _check_pair(value)
    else:
        read_row(value, row_kind)
    return row_kind


def _check_pair(value: dict[str, object]) -> None:
    if "preferred_output" not in value:
        raise Refusal("missing_key", '"preferred_output" is missing', "add a list with one assistant message")
    prompt, _, better, worse = openai_pair(value)
    for key, answers in (("preferred_output", better), ("non_preferred_output", worse)):
        if len(answers) != 1 or not isinstance(answers[0], dict) or answers[0].get("role") != "assistant":
            raise Refusal(
                "no_messages",
                f'"{key}" is not one assistant message',
                "write exactly one message with the role assistant",
            )
        try:
            answer = {name: value for name, value in answers[0].items() if name not in SUPERVISION_KEYS}
            read_messages([*prompt, {**answer, "weight": 1}])
        except Refusal as refusal:
            raise _RejectedAnswer(refusal, key, len(prompt)) from refusal
