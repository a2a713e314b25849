"""Around the steps: the last checkpoint reaches the mirror, the best one is not lost, a save is not cut off."""

import os
import shutil
import threading
import time

import pytest

from tests.training.export.test_export import LORA, Trained
from tunesmith.configs.plan import Plan
from tunesmith.errors import RunFault
from tunesmith.modeling.adapters.method import trained_parameters
from tunesmith.rundir import commit
from tunesmith.rundir.events import read_events
from tunesmith.rundir.ledger import Ledger
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoint import mirror as mirrors
from tunesmith.training.checkpoint.checkpoints import load_state, require_same
from tunesmith.training.checkpoint.mirror import Mirror
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed import interruption as interruptions
from tunesmith.training.distributed.interruption import Interruption
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.plain import PlainEngine
from tunesmith.training.journal import Journal
from tunesmith.training.milestones import Milestones, fingerprints_of
from tunesmith.training.reference import Reference
from tunesmith.training.run_rank import resume

ALONE = Ranks(0, 0, 1)


class Attempt:
    """One attempt's milestones on a run directory, with a real engine and a mirror; the steps are set by hand."""

    def __init__(self, trained: Trained, run: RunDir, url: str, state: RunState | None = None):
        run.create()
        self.run, self.plan, self.state = run, trained.plan, state or RunState()
        parameters = trained_parameters(trained.model)
        self.engine = PlainEngine(trained.loss, parameters, self.plan.recipe.optimization, ALONE, device="cpu")
        self.journal = Journal(run, ALONE, attempt=1, total_steps=9)
        self.mirror, self.interruption = Mirror(url, run, 1), Interruption()

    def resume(self) -> RunState:
        self.state, _ = resume(self.run, self.plan, self.engine, self.journal, ALONE, self.mirror)
        return self.state

    def milestones(self, trained: Trained) -> Milestones:
        return Milestones(
            self.run,
            self.plan,
            self.engine,
            self.state,
            trained.tokenizer,
            ALONE,
            self.journal,
            Ledger(self.run, 0, 1),
            1,
            Reference(),
            self.interruption,
            self.mirror,
        )

    def save(self, trained: Trained, step: int, reason: str) -> None:
        milestones = self.milestones(trained)
        self.state.step = step
        milestones.save(reason)

    def warnings(self) -> list[str]:
        return [event["message"] for event in read_events(self.run.events, "warning")]


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory) -> Trained:
    recipe = {
        "evaluation": {"early_stopping": {"patience": 2}, "num_answers": 0},
        "checkpoint": {"keep_last": 1},
    }
    return Trained(tiny_llama, tmp_path_factory.mktemp("trained") / "run", LORA, recipe=recipe)


@pytest.fixture
def attempt(trained, tmp_path, monkeypatch) -> Attempt:
    monkeypatch.setattr(mirrors, "WAIT_S", 0.0)
    monkeypatch.setattr(mirrors, "TRIES", 1)
    monkeypatch.setattr(commit, "_fault_counts", {})
    return Attempt(trained, RunDir(tmp_path / "here" / "run"), f"file://{tmp_path}/mirror")


def elsewhere(attempt: Attempt, trained: Trained, tmp_path) -> Attempt:
    """The same run on a machine whose disk is new."""
    return Attempt(trained, RunDir(tmp_path / "there" / "run"), f"file://{tmp_path}/mirror")


def changed(plan: Plan, section: str, **values) -> Plan:
    part = getattr(plan.recipe, section).model_copy(update=values)
    return plan.model_copy(update={"recipe": plan.recipe.model_copy(update={section: part})})


@pytest.mark.parametrize("reason", ["end", "preemption"])
@pytest.mark.parametrize("times", ["1", "2"])
def test_the_last_checkpoint_is_sent_again_where_it_did_not_arrive(attempt, trained, monkeypatch, reason, times):
    """Saved as due, which only warns; then as the last one, when nothing is left to write but it must arrive."""
    monkeypatch.setenv("TUNESMITH_FAULT", f"mirror.files:{times}=raise")
    milestones = attempt.milestones(trained)
    if times == "1":
        attempt.state.step = 3
        milestones.save("schedule")
        assert attempt.mirror.steps() == []
        assert "step 3 is not in the mirror" in attempt.warnings()[0]
        milestones.save(reason)
    else:
        attempt.state.step = 2
        milestones.save("schedule")
        attempt.state.step = 3
        with pytest.raises(RunFault, match="could not be sent to its mirror"):
            milestones.save(reason)
        assert attempt.mirror.steps() == [2]
        milestones.save(reason)
    assert attempt.mirror.steps() == [3]


def test_an_attempt_that_made_no_step_sends_what_the_one_before_could_not(attempt, trained, tmp_path):
    attempt.save(trained, 3, "end")
    shutil.rmtree(tmp_path / "mirror")
    attempt.milestones(trained).save("preemption")
    assert attempt.mirror.steps() == [3]
    attempt.milestones(trained).save("preemption")
    assert [event["step"] for event in read_events(attempt.run.events, "mirror")] == [3, 3]


def test_a_mirror_that_lets_nothing_be_deleted_is_a_warning_of_its_own(attempt, trained, monkeypatch):
    monkeypatch.setenv("TUNESMITH_FAULT", "mirror.delete=raise")
    milestones = attempt.milestones(trained)
    attempt.state.step = 2
    milestones.save("schedule")
    attempt.state.step = 3
    milestones.save("end")
    assert attempt.mirror.steps() == [2, 3]
    assert [event["step"] for event in read_events(attempt.run.events, "mirror")] == [2, 3]
    (told,) = attempt.warnings()
    assert "older checkpoints stay in the mirror" in told


def test_the_best_checkpoint_stays_in_the_mirror_and_comes_back_with_the_newest(attempt, trained, tmp_path):
    milestones = attempt.milestones(trained)
    for step in (2, 4, 6):
        attempt.state.step = step
        attempt.state.note_validation(1.0 + abs(step - 4), 0.0)
        milestones.save("schedule")
    shutil.rmtree(attempt.run.checkpoint(4))  # what is deleted here is not deleted there
    attempt.state.step = 8
    milestones.save("end")
    assert attempt.mirror.steps() == [4, 8]

    again = elsewhere(attempt, trained, tmp_path)
    assert again.resume().step == 8
    assert sorted(path.name for path in again.run.checkpoints.iterdir()) == ["step-00000004", "step-00000008"]
    again.milestones(trained)._take_best()
    assert again.state.step == 4


def test_a_best_checkpoint_that_is_nowhere_fails_the_run_and_the_untrained_model_has_none(attempt, trained):
    milestones = attempt.milestones(trained)
    attempt.state.note_validation(1.0, 0.0)
    attempt.state.step = 6
    milestones.save("end")
    milestones._take_best()
    assert "no step had a lower validation loss than the untrained model" in attempt.warnings()[0]
    attempt.state.best_step = 4
    with pytest.raises(RunFault, match="checkpoint of step 4, whose validation loss was the lowest") as raised:
        milestones._take_best()
    assert "--step 6" in str(raised.value)


def test_a_mirror_out_of_reach_ends_a_run_without_checkpoints_and_no_other(attempt, trained, tmp_path):
    (tmp_path / "mirror").touch()
    with pytest.raises(RunFault, match="cannot be reached"):
        attempt.resume()
    attempt.save(trained, 3, "schedule")
    assert attempt.resume().step == 3
    assert any("going on without the mirror" in told for told in attempt.warnings())


def test_a_run_of_the_same_name_but_another_recipe_does_not_go_on_from_the_mirror(attempt, trained, tmp_path):
    attempt.save(trained, 3, "end")
    for section, key, value in (("optimization", "learning_rate", 1e-5), ("preference", "beta", 0.5)):
        again = elsewhere(attempt, trained, tmp_path)
        again.plan = changed(trained.plan, section, **{key: value})
        with pytest.raises(RunFault, match=f"another {'task' if section == 'preference' else section}"):
            again.resume()
    again.plan = changed(changed(trained.plan, "resources", workers=2), "parallelism", zero_stage=2)
    assert again.resume().step == 3


def test_a_checkpoint_of_an_earlier_version_is_held_against_what_it_says(attempt, trained):
    attempt.save(trained, 3, "end")
    _, said = load_state(attempt.run.checkpoint(3))
    expected, path = fingerprints_of(trained.plan), attempt.run.checkpoint(3)
    assert "z_loss" not in expected["optimization"]  # unset, as where an earlier version wrote the checkpoint
    require_same({key: said[key] for key in said if key not in ("optimization", "task")}, expected, path)
    for key in ("model", "data"):
        with pytest.raises(RunFault, match=f"another {key}"):
            require_same({name: value for name, value in said.items() if name != key}, expected, path)


def test_an_orphans_time_does_not_run_during_its_last_save(attempt, trained, tmp_path, monkeypatch):
    """The mirror takes longer than an orphan may; the time runs on when the save is over."""
    until = tmp_path / "arrive"
    monkeypatch.setenv("TUNESMITH_FAULT", "mirror.files=hang")
    monkeypatch.setenv("TUNESMITH_FAULT_UNTIL", str(until))
    monkeypatch.setenv("TUNESMITH_ORPHAN_GRACE_S", "0.2")
    monkeypatch.setattr(interruptions, "LOOK_S", 0.02)
    ended = threading.Event()
    monkeypatch.setattr(interruptions, "end_hard", lambda error, stacks: ended.set())
    saving = threading.Thread(target=attempt.save, args=[trained, 3, "preemption"])
    saving.start()
    while not os.path.isdir(tmp_path / "mirror"):
        time.sleep(0.01)
    threading.Thread(target=attempt.interruption._end_when_late).start()
    assert not ended.wait(1.0)
    until.touch()
    saving.join(10)
    assert attempt.mirror.steps() == [3]
    assert ended.wait(5.0)
