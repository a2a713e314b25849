"""launch.json and job.json: files of earlier versions are read, damaged files are reported."""

import json

import pytest

from tunesmith.errors import InputError
from tunesmith.rundir.job import JobRecord, read_job
from tunesmith.rundir.launch import Launch, launch_or_default, read_launch
from tunesmith.rundir.paths import RunDir

# As version 0.1 wrote it for a job with a chain.
JOB_0_1 = """\
{
  "recipe_file": "/home/ann/recipe.yaml",
  "recipe_text": "name: tiny\\n",
  "overrides": [
    "optimization.epochs=2"
  ],
  "launcher": "torchrun",
  "cluster": {
    "partition": "main",
    "cpus_per_node": 1
  },
  "evaluate_data": [
    "/home/ann/held-out.jsonl"
  ],
  "stages": {
    "prepare": "41",
    "train": "42"
  }
}
"""


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir(tmp_path)


def test_a_job_record_of_version_0_1_round_trips_byte_for_byte(run):
    run.job.write_text(JOB_0_1)
    record = read_job(run)
    assert record == JobRecord(
        "/home/ann/recipe.yaml",
        "name: tiny\n",
        ["optimization.epochs=2"],
        {"launcher": "torchrun", "cluster": {"partition": "main", "cpus_per_node": 1}},
        ["/home/ann/held-out.jsonl"],
        {"prepare": "41", "train": "42"},
    )
    record.write(run.job)
    assert run.job.read_text() == JOB_0_1


@pytest.mark.parametrize("text", ["", "[]", '"text"', '{"recipe_file": "a"}', "\x00"])
def test_a_damaged_job_record_is_read_as_none(run, text):
    run.job.write_text(text)
    assert read_job(run) is None


def test_a_launch_round_trips_and_unknown_keys_are_ignored(run):
    assert read_launch(run.launch) == Launch("local", "", "")
    launch = Launch("ray", "http://head:8265", "job-1")
    launch.write(run.launch)
    assert run.launch.read_text() == '{"backend": "ray", "address": "http://head:8265", "job": "job-1"}\n'
    run.launch.write_text(json.dumps({**json.loads(run.launch.read_text()), "zone": "b"}))
    assert read_launch(run.launch) == launch


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", "null", "\x00"])
def test_a_damaged_launch_raises_an_error_that_names_the_file(run, text):
    run.launch.write_text(text)
    with pytest.raises(InputError) as caught:
        read_launch(run.launch)
    assert caught.value.where == str(run.launch)
    assert launch_or_default(run.launch) == Launch()
