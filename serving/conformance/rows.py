"""Training rows for the checks: few, all different, and the same in every run."""

import json
from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

SUBJECTS = ("the moon", "a bridge", "bread", "a violin", "the tide", "a lantern", "salt", "an oak", "snow", "a clock")
COLOURS = ("white", "grey", "brown", "red", "blue", "yellow", "green")

Row = Mapping[str, object]


class Message(TypedDict):
    role: str
    content: str
    weight: NotRequired[int]


class ChatRow(TypedDict):
    messages: list[Message]


def chat_rows(count: int, first: int = 0) -> list[ChatRow]:
    """Questions and answers; every fifth row has an earlier answer with weight 0. first: number of the first row, to
    get rows that no other file contains."""
    return [_chat_row(number) for number in range(first, first + count)]


def _chat_row(number: int) -> ChatRow:
    subject, colour = SUBJECTS[number % len(SUBJECTS)], COLOURS[number % len(COLOURS)]
    messages: list[Message] = [{"role": "system", "content": "Answer in one sentence."}]
    if number % 5 == 0:
        messages += [
            {"role": "user", "content": f"Is question {number} about {subject}?"},
            {"role": "assistant", "content": "I do not know.", "weight": 0},
        ]
    messages += [
        {"role": "user", "content": f"Question {number}: which colour has {subject}?"},
        {"role": "assistant", "content": f"In picture {number}, {subject} is {colour}.", "weight": 1},
    ]
    return {"messages": messages}


def completion_rows(count: int) -> list[Row]:
    return [
        {"prompt": f"Picture {n}, {SUBJECTS[n % 10]}:", "completion": f" {COLOURS[n % 7]} in frame {n}"}
        for n in range(count)
    ]


def preference_rows(count: int) -> list[Row]:
    return [
        {
            "input": {"messages": [{"role": "user", "content": f"Case {n}: which colour has {SUBJECTS[n % 10]}?"}]},
            "preferred_output": [{"role": "assistant", "content": f"It is {COLOURS[n % 7]}."}],
            "non_preferred_output": [{"role": "assistant", "content": f"Nobody knows, case {n}."}],
        }
        for n in range(count)
    ]


def as_jsonl(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
