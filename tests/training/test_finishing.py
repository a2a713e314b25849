"""After the last step: the best weights are loaded, or the run fails with the reason."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.rank_processes import outputs_of_ranks
from tests.waiting import LIMIT_S
from tunesmith.errors import RunFault
from tunesmith.modeling.adapters.method import trained_parameters
from tunesmith.training.finishing import load_best, require_moderate_adapter
from tunesmith.training.rank_context import RankContext


def test_the_best_checkpoint_is_kept_in_the_mirror_and_downloaded_on_resume(attempt, elsewhere):
    saving = attempt.saving()
    for step in (2, 4, 6):
        attempt.state.step = step
        attempt.state.note_validation(1.0 + abs(step - 4), 0.0)
        saving.save("schedule")
    shutil.rmtree(attempt.run.checkpoint(4))  # a local deletion does not delete the mirrored copy
    attempt.state.step = 8
    saving.save("end")
    assert attempt.mirror.steps() == [4, 8]

    again = elsewhere()
    assert again.resume().step == 8
    assert sorted(path.name for path in again.run.checkpoints.iterdir()) == ["step-00000004", "step-00000008"]
    load_best(again.context, again.state)
    assert again.state.step == 4


def test_a_missing_best_checkpoint_fails_the_run_unless_the_untrained_model_is_best(attempt):
    saving = attempt.saving()
    attempt.state.note_validation(1.0, 0.0)
    attempt.state.step = 6
    saving.save("end")
    load_best(attempt.context, attempt.state)
    assert "no step had a lower validation loss than the untrained model" in attempt.warnings()[0]
    attempt.state.best_step = 4
    with pytest.raises(RunFault, match="checkpoint of step 4, which had the lowest validation loss") as raised:
        load_best(attempt.context, attempt.state)
    assert "--step 6" in str(raised.value)


def test_an_adapter_is_measured_only_if_there_is_one_and_its_rows_are_in_the_cache(
    attempt, trained, elsewhere, tmp_path
):
    """The cache may have been cleaned while the run trained."""

    def context_of(directory: Path) -> RankContext:
        split = trained.plan.data.train.model_copy(update={"index": str(directory)})
        data = trained.plan.data.model_copy(update={"train": split, "validation": None})
        return elsewhere(trained.plan.model_copy(update={"data": data})).context

    require_moderate_adapter(trained.model, context_of(tmp_path / "gone"))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    require_moderate_adapter(torch.nn.Linear(1, 1), context_of(damaged))
    with pytest.raises(RunFault, match="damaged"):
        require_moderate_adapter(trained.model, context_of(damaged))
    with torch.no_grad():
        weights = {name: weight.clone() for name, weight in trained_parameters(trained.model).items()}
        try:
            for weight in trained_parameters(trained.model).values():
                weight.fill_(1e9)
            with pytest.raises(RunFault, match="learning rate was too high"):
                require_moderate_adapter(trained.model, attempt.context)
        finally:
            for name, weight in trained_parameters(trained.model).items():
                weight.copy_(weights[name])


ONE_OF_TWO = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.training.attempts import Attempt
from tests.training.export.test_export import LORA, Trained
from tunesmith.errors import RunFault
from tunesmith.training.checkpoint import mirror
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.ranks import join_ranks, leave_ranks
from tunesmith.training.finishing import load_best
ranks, place, faults = join_ranks("cpu"), Path(sys.argv[3]), []
mirror.WAIT_S, mirror.TRIES = 0.0, 1
host = place / f"host-{ranks.rank}"
recipe = {"evaluation": {"early_stopping": {"patience": 2}, "num_answers": 0}, "checkpoint": {"keep_last": 1}}
trained = Trained(Path(sys.argv[2]), host / "trained", LORA, recipe=recipe)
if ranks.rank == 1:
    trained.run.checkpoint(4).mkdir(parents=True)
attempt = Attempt(trained, trained.run, f"file://{place}/mirror", ranks=ranks)
state = RunState(step=6, best_step=4, best_loss=1.0)
for part in (lambda: load_best(attempt.context, state), attempt.resume):
    try:
        part()
    except RunFault as error:
        faults.append([error.what, error.where])
print(json.dumps(faults))
leave_ranks()
"""


def test_a_checkpoint_missing_on_rank_0_fails_every_rank(tiny_llama, tmp_path, free_port, warm_python):
    """Two hosts: the second has a checkpoint that the first has lost, and the first cannot reach the mirror.

    Both follow the first, so that none continues while the other has failed.
    """
    (tmp_path / "mirror").touch()
    program = ["-c", ONE_OF_TWO, str(Path(__file__).parents[2]), str(tiny_llama), str(tmp_path)]
    outputs = outputs_of_ranks(warm_python, program, world_size=2, port=free_port, timeout_s=LIMIT_S)
    first, second = (json.loads(out.splitlines()[-1]) for out in outputs)
    assert first == second
    (missing, where), (unreachable, _) = first
    assert "checkpoint of step 4, which had the lowest validation loss, is missing" in missing
    assert "host-0" in where
    assert "cannot be reached" in unreachable
