"""A job that comes no further stops; one that does goes on."""

import pytest

from tunesmith.cli.batch_step import begin_life
from tunesmith.errors import RunFault
from tunesmith.rundir.paths import RunDir


@pytest.fixture
def run(tmp_path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.create()
    made.jobs.mkdir()
    return made


def test_a_life_that_begins_where_the_last_one_began_ends_the_job(run):
    begin_life(run, "train", "7", 1)
    run.plan.write_text("{}")
    begin_life(run, "train", "7", 2)  # the rows were prepared
    run.checkpoint(10).mkdir()
    begin_life(run, "train", "7", 3)  # ten steps were saved
    with pytest.raises(RunFault, match="life 4 of job 7 begins where life 3 began") as fault:
        begin_life(run, "train", "7", 4)
    assert fault.value.where is not None
    assert fault.value.where.startswith("step 10")
    assert "every_steps" in str(fault.value.remedy)


def test_another_job_on_the_same_run_begins_anew(run):
    begin_life(run, "train", "7", 1)
    begin_life(run, "train", "8", 1)
    with pytest.raises(RunFault):
        begin_life(run, "train", "8", 2)
