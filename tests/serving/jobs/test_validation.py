"""A job's files are checked for its base model as `tunesmith data check` does, with the same message."""

import json
import shutil

import pytest

from tests.data.tokenization.families import QWEN_3
from tunesmith.serving.jobs.fault import JobFault
from tunesmith.serving.jobs.validation import Files, JobRequest, validate

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy."}
THINKING = {"role": "assistant", "reasoning_content": "two and two make four", "content": "4"}


@pytest.fixture(scope="module")
def qwen(tiny_llama, tmp_path_factory):
    """A tiny model with the template of Qwen3."""
    directory = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("qwen") / "tiny-qwen")
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": QWEN_3}))
    return directory


def request_of(base, method="supervised"):
    return JobRequest("ftjob-1", base, None, method, {}, 1)


def test_a_row_of_which_the_template_omits_something_fails_the_job(qwen, write_jsonl):
    rows = [{"messages": [USER, ANSWER]} for _ in range(12)]
    rows[2] = {"messages": [{"role": "developer", "content": "Answer as a pirate."}, USER, ANSWER]}
    with pytest.raises(JobFault) as raised:
        validate(request_of(qwen), Files(write_jsonl("rows.jsonl", rows), None))
    assert raised.value.code == "invalid_training_file"
    omitted = "the chat template tiny-qwen/tokenizer_config.json omits messages[0].content (developer)"
    assert f"Example 3: {omitted}" in raised.value.message


def test_omitted_thinking_of_earlier_turns_is_a_warning(qwen, write_jsonl):
    rows = [{"messages": [USER, THINKING, USER, {**ANSWER, "content": f"Ahoy {number}."}]} for number in range(12)]
    notes = validate(request_of(qwen), Files(write_jsonl("rows.jsonl", rows), None)).notes
    (note,) = [note for note in notes if note.key == "receipts:omitted"]
    assert note.level == "warn"
    assert "omits thinking in 12 rows" in note.message


@pytest.mark.parametrize("keys", [{"train": False}, {"masked": True}, {"weight": 0}])
def test_an_answer_of_a_pair_that_is_not_to_be_trained_is_named(tiny_llama, write_jsonl, keys):
    rows = [
        {
            "input": {"messages": [USER]},
            "preferred_output": [ANSWER],
            "non_preferred_output": [ANSWER | {"content": f"{n}"}],
        }
        for n in range(10)
    ]
    rows[2] |= {"preferred_output": [ANSWER | keys]}
    with pytest.raises(JobFault) as raised:
        validate(request_of(tiny_llama, "dpo"), Files(write_jsonl("rows.jsonl", rows), None))
    reason = "Example 3: the chosen answer: no supervised token: every assistant message has weight 0"
    assert reason in raised.value.message
