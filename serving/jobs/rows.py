"""Training and validation files of a job, checked line by line: what is wrong, with example and message number.

    chat        {"messages": [...], "tools"?, "parallel_tool_calls"?}
    completion  {"prompt", "completion"}
    preference  {"input": {"messages": [...]}, "preferred_output": [message], "non_preferred_output": [message]}

What a row may hold is said in data/; here its words are told in the API's, and numbers count from 1.
"""

from collections.abc import Iterator
from pathlib import Path

from tunesmith.configs.tasks import TASKS
from tunesmith.data.encoders.preference import openai_pair
from tunesmith.data.readers.sources import Line, cut, read
from tunesmith.data.refusal import Refusal, name_of
from tunesmith.data.rows.formats import read_row
from tunesmith.data.rows.messages import read_messages
from tunesmith.errors import InputError
from tunesmith.serving.jobs.fault import JobFault

MIN_EXAMPLES = 10
MAX_TOLD = 3
"""Faulty examples that the message names."""
KINDS = {"messages": "chat", "input": "preference", "preferred_output": "preference", "prompt": "completion"}
"""The key by which the kind of a row is known."""
METHODS = {"supervised": ("chat", "completion"), "dpo": ("preference",)}
ANSWERS = {"preferred_output": "the better answer", "non_preferred_output": "the worse answer"}


class _AnswerRefused(Refusal):
    """A refusal of the conversation that ends with one of two answers. key: the answer's; num_before: messages that
    stand before both of them."""

    def __init__(self, refusal: Refusal, key: str, num_before: int):
        reason = f"{ANSWERS[key]}: {refusal.reason}"
        super().__init__(refusal.code, reason, refusal.remedy, message=refusal.message, fault=refusal.fault)
        self.key, self.num_before = key, num_before


def check_rows(path: Path, method: str, param: str, kind: str | None = None) -> tuple[str, int]:
    """The kind of a file's rows, and how many there are. kind: that it has to be, where another file has said so.

    Raises JobFault: `invalid_training_file` (`invalid_validation_file`) for a bad line or one of the wrong kind,
    `invalid_n_examples` for a training file with fewer than ten. param: training_file or validation_file.
    """
    faults: list[str] = []
    number = 0
    for number, line in enumerate(_lines(path, param), start=1):
        try:
            kind = _checked(line, method, kind)
        except Refusal as refusal:
            faults.append(_described(refusal, number))
            if len(faults) == MAX_TOLD:
                break
    if faults:
        raise invalid(param, faults)
    if param == "training_file" and number < MIN_EXAMPLES:
        raise JobFault(
            "invalid_n_examples",
            f"Training file has {number} example(s), but must have at least {MIN_EXAMPLES} examples",
            param,
        )
    assert kind is not None  # a file without rows is refused as such
    return kind, number


def invalid(param: str, faults: list[str]) -> JobFault:
    name = param.replace("_", " ")
    return JobFault(
        f"invalid_{param}",
        f"The job failed due to an invalid {name}. Invalid file format. {' '.join(faults)}",
        param,
    )


def describe(number: int, fault: str, remedy: str) -> str:
    """What is wrong with an example, in the API's words. number: from 1."""
    return f"Example {number}: {fault}; {remedy}."


def _described(refusal: Refusal, number: int) -> str:
    """As `describe`, with the message where it is about one: `Example 3, message 2: ...`."""
    if refusal.message is None:
        return describe(number, refusal.reason, refusal.remedy)
    where = f"message {refusal.message + 1}"
    if isinstance(refusal, _AnswerRefused) and refusal.message >= refusal.num_before:
        where = refusal.key
    return f"Example {number}, {where}: {refusal.fault}; {refusal.remedy}."


def _lines(path: Path, param: str) -> Iterator[Line]:
    try:
        for shard in cut(path):
            yield from read(shard)
    except InputError as error:
        raise invalid(param, [f"{error.what}."]) from error


def _checked(line: Line, method: str, kind: str | None) -> str:
    """The row's kind, where it is good and of the kind of those before. Raises Refusal."""
    value = line.value
    if isinstance(value, Refusal):
        raise value
    if type(value) is not dict:
        raise Refusal(
            "not_an_object", f"the row is {name_of(value)}, not an object", 'write each row as {"messages": [...]}'
        )
    found = next((name for key, name in KINDS.items() if key in value), None)
    wanted = METHODS[method]
    if found is None:
        near = {"chat": '"messages"', "completion": '"prompt" and "completion"', "preference": '"input"'}
        raise Refusal(
            "missing_key", f"the row has no {' or '.join(near[name] for name in wanted)}", "see the formats of the API"
        )
    if found not in wanted:
        raise Refusal(
            "other_task",
            f"the row is of the {found} format, and the method {method} takes {' or '.join(wanted)}",
            "choose the other method, or another file",
        )
    if kind is not None and found != kind:
        raise Refusal(
            "mixed_formats",
            f"the row is of the {found} format, those before of the {kind} format",
            "keep to one format",
        )
    if "functions" in value:
        raise Refusal("unsupported_key", '"functions" is the older form of "tools"', 'write "tools" instead')
    if TASKS[found].is_paired:
        _check_pair(value)
    else:
        read_row(value, found)
    return found


def _check_pair(value: dict[str, object]) -> None:
    if "preferred_output" not in value:
        raise Refusal("missing_key", '"preferred_output" is missing', "give the row a list with one assistant message")
    asked, _, better, worse = openai_pair(value)
    for key, answers in (("preferred_output", better), ("non_preferred_output", worse)):
        if len(answers) != 1 or not isinstance(answers[0], dict) or answers[0].get("role") != "assistant":
            raise Refusal(
                "no_messages",
                f'"{key}" is not one assistant message',
                "write exactly one message of the role assistant",
            )
        try:
            read_messages([*asked, {**answers[0], "weight": 1}])
        except Refusal as refusal:
            raise _AnswerRefused(refusal, key, len(asked)) from refusal
