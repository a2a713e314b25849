"""A job that makes no progress between two starts fails; one that makes progress continues."""

import pytest

from tunesmith.cli.batch_step import record_start
from tunesmith.errors import RunFault
from tunesmith.rundir.paths import RunDir


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    run.jobs.mkdir()
    return run


def test_a_start_without_progress_since_the_previous_one_fails_the_job(run):
    record_start(run, "train", "7", 1)
    run.plan.write_text("{}")
    record_start(run, "train", "7", 2)  # the rows were prepared
    run.checkpoint(10).mkdir()
    record_start(run, "train", "7", 3)  # ten steps were saved
    with pytest.raises(RunFault, match="nothing was saved between start 3 and 4") as fault:
        record_start(run, "train", "7", 4)
    assert fault.value.where is not None
    assert fault.value.where.startswith("step 10")
    assert "every_steps" in str(fault.value.remedy)


def test_the_starts_of_another_job_on_the_same_run_do_not_count(run):
    record_start(run, "train", "7", 1)
    record_start(run, "train", "8", 1)
    with pytest.raises(RunFault):
        record_start(run, "train", "8", 2)
