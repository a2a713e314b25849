"""Validation of training files: error codes, numbers of examples and messages."""

import pytest

from tunesmith.serving.jobs.fault import JobFault
from tunesmith.serving.jobs.rows import check_rows

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CHAT = {"messages": [USER, ANSWER]}
PAIR = {
    "input": {"messages": [USER]},
    "preferred_output": [ANSWER],
    "non_preferred_output": [{"role": "assistant", "content": "b"}],
}
COMPLETION = {"prompt": "q", "completion": "a"}


def test_valid_files_return_their_kind_and_number_of_rows(write_jsonl):
    for row, method, kind in ((CHAT, "supervised", "chat"), (COMPLETION, "supervised", "completion")):
        assert check_rows(write_jsonl("rows.jsonl", [row] * 10), method, "training_file") == (kind, 10)
    assert check_rows(write_jsonl("rows.jsonl", [PAIR] * 12), "dpo", "training_file") == ("preference", 12)


def test_every_role_and_key_of_the_api_is_accepted(write_jsonl):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    rows = [
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "developer", "content": "d"},
                {"role": "user", "content": "u", "name": "n"},
                {"role": "assistant", "content": "skip", "weight": 0},
                {"role": "user", "content": "u"},
                {"role": "assistant", "tool_calls": [call], "weight": 1},
                {"role": "tool", "tool_call_id": "c", "content": "1"},
                {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
                {"role": "function", "name": "f", "content": "2"},
                {"role": "assistant", "content": "done"},
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "parallel_tool_calls": False,
        }
    ] * 10
    assert check_rows(write_jsonl("rows.jsonl", rows), "supervised", "training_file") == ("chat", 10)


def test_only_training_files_need_ten_examples(write_jsonl):
    path = write_jsonl("rows.jsonl", [CHAT] * 9)
    with pytest.raises(JobFault) as raised:
        check_rows(path, "supervised", "training_file")
    fault = raised.value
    assert (fault.code, fault.param) == ("invalid_n_examples", "training_file")
    assert "9 example(s)" in fault.message
    assert check_rows(path, "supervised", "validation_file") == ("chat", 9)


@pytest.mark.parametrize(
    ("row", "method", "texts"),
    [
        ("{not json", "supervised", ["Example 4", "invalid JSON"]),
        ("[1]", "supervised", ["Example 4", "not an object"]),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "supervised", ["Example 4, message 2", "empty"]),
        ({"messages": [USER, {"role": "assistent", "content": "x"}]}, "supervised", ["Example 4, message 2", "role"]),
        ({"messages": [USER, ANSWER | {"weight": 2}]}, "supervised", ["Example 4, message 2", "weight"]),
        ({"messages": [{"role": "user"}, ANSWER]}, "supervised", ["Example 4, message 1", '"content"']),
        ({"messages": [USER]}, "supervised", ["Example 4", "no assistant message"]),
        ({"messages": [USER, ANSWER], "functions": []}, "supervised", ["Example 4", '"tools"']),
        ({"text": "x"}, "supervised", ["Example 4", '"messages"']),
        (PAIR, "supervised", ["Example 4", "preference format", "supervised"]),
        (COMPLETION, "supervised", ["Example 4", "completion format", "chat format"]),
        # Formats that the command line takes, but the API does not.
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "supervised",
            ["Example 4", '"messages"'],
        ),
        ({"messages": [{"from": "human", "value": "q"}, ANSWER]}, "supervised", ["Example 4, message 1", '"role"']),
        ({"messages": [{"role": "human", "content": "q"}, ANSWER]}, "supervised", ["Example 4, message 1", "human"]),
        (
            {"messages": [USER, {"role": "function_call", "content": "{}"}]},
            "supervised",
            ["Example 4, message 2", "function_call"],
        ),
        ({"instruction": "q", "output": "a"}, "supervised", ["Example 4", '"messages"']),
        ({"prompt": [USER], "completion": [ANSWER]}, "supervised", ["Example 4", "completion format"]),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "dpo", ["Example 4", "completion format"]),
        ({"messages": [USER], "chosen": ANSWER, "rejected": ANSWER}, "dpo", ["Example 4", "chat format"]),
        (PAIR | {"preferred_output": ANSWER}, "dpo", ["Example 4", "preferred_output"]),
        (CHAT, "dpo", ["Example 1", "chat format", "dpo"]),
        (PAIR | {"preferred_output": []}, "dpo", ["Example 4", "preferred_output"]),
        (PAIR | {"preferred_output": [ANSWER, ANSWER]}, "dpo", ["Example 4", "exactly one"]),
        (PAIR | {"non_preferred_output": [USER]}, "dpo", ["Example 4", "non_preferred_output"]),
        (
            PAIR | {"non_preferred_output": [{"role": "assistant", "content": ""}]},
            "dpo",
            ["Example 4, non_preferred_output", "empty"],
        ),
        (PAIR | {"input": {"messages": [USER, {"role": "user"}]}}, "dpo", ["Example 4, message 2", '"content"']),
    ],
)
def test_an_invalid_line_is_reported_with_its_number(write_jsonl, row, method, texts):
    good = PAIR if method == "dpo" else CHAT
    first = [CHAT] * 3 if texts[0] == "Example 1" else [good] * 3
    for param in ("training_file", "validation_file"):
        with pytest.raises(JobFault) as raised:
            check_rows(write_jsonl("rows.jsonl", [*first, row, *[good] * 8]), method, param)
        assert (raised.value.code, raised.value.param) == (f"invalid_{param}", param)
        assert all(text in raised.value.message for text in texts), raised.value.message


def test_a_prompt_of_messages_is_no_completion(write_jsonl):
    row = {"prompt": [USER], "completion": [ANSWER]}
    with pytest.raises(JobFault, match="Example 1: prompt is a list, not a string"):
        check_rows(write_jsonl("rows.jsonl", [row] * 10), "supervised", "training_file")


def test_the_first_errors_are_reported_and_empty_files_are_rejected(write_jsonl):
    with pytest.raises(JobFault, match=r"Example 2.*Example 4.*Example 5") as raised:
        check_rows(write_jsonl("rows.jsonl", [CHAT, "x", CHAT, "x", "x", "x"]), "supervised", "training_file")
    assert "Example 6" not in raised.value.message
    with pytest.raises(JobFault, match="empty"):
        check_rows(write_jsonl("none.jsonl", []), "supervised", "training_file")
