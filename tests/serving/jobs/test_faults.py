"""Messages of failed jobs, as the error of the job and as its last event."""

import json
import re

import pytest

from tunesmith.serving.jobs.fault import JobFault
from tunesmith.serving.jobs.rows import check_rows

ROW = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
FILES = {
    "too few": [ROW] * 3,
    "no message": [ROW, '{"messages": []}'],
    "no JSON": [ROW, "{"],
    "no object": [ROW, "[]"],
    "unknown role": [ROW, '{"messages": [{"role": "who", "content": "a"}]}'],
    "two faults": [ROW, "5", '{"functions": [], "messages": []}'],
    "empty": [],
    "another kind": [ROW, '{"prompt": "a", "completion": "b"}'],
}


@pytest.mark.parametrize("name", FILES)
def test_messages_have_no_doubled_words(tmp_path, name):
    path = tmp_path / "training.jsonl"
    path.write_text("".join(f"{line}\n" for line in FILES[name]))
    with pytest.raises(JobFault) as raised:
        check_rows(path, "supervised", "training_file")
    event = raised.value.as_event()
    assert event.startswith("The job failed")
    assert len(re.findall(r"\bfail(?:ed|s|ure)\b", event)) == 1, event
    assert not re.search(r"\b(\w+)\W+\1\b", event, re.IGNORECASE), event
    assert not re.search(r"[;:,]\s*[;:,]", event), event


def test_a_message_of_another_component_becomes_a_sentence_about_the_job():
    assert JobFault("run_failed", "the disk is full").as_event() == "The job failed: the disk is full"
