"""What a run resumes from: its own checkpoints alone, also from the mirror and from earlier versions."""

import pytest

from tunesmith.configs.plan import Plan
from tunesmith.errors import RunFault
from tunesmith.training.checkpoint.checkpoints import load_state, require_same
from tunesmith.training.checkpoint.fingerprints import fingerprints_of


def changed(plan: Plan, section: str, **values) -> Plan:
    part = getattr(plan.recipe, section).model_copy(update=values)
    return plan.model_copy(update={"recipe": plan.recipe.model_copy(update={section: part})})


def test_a_mirror_out_of_reach_ends_a_run_without_checkpoints_and_no_other(attempt, tmp_path):
    (tmp_path / "mirror").touch()
    with pytest.raises(RunFault, match="cannot be reached"):
        attempt.resume()
    attempt.save(3, "schedule")
    assert attempt.resume().step == 3
    assert any("going on without the mirror" in told for told in attempt.warnings())


def test_a_run_of_the_same_name_but_another_recipe_does_not_go_on_from_the_mirror(attempt, trained, elsewhere):
    attempt.save(3, "end")
    for section, key, value in (("optimization", "learning_rate", 1e-5), ("preference", "beta", 0.5)):
        again = elsewhere(changed(trained.plan, section, **{key: value}))
        with pytest.raises(RunFault, match=f"another {'task' if section == 'preference' else section}"):
            again.resume()
    again = elsewhere(changed(changed(trained.plan, "resources", workers=2), "parallelism", zero_stage=2))
    assert again.resume().step == 3


def test_a_checkpoint_of_an_earlier_version_is_held_against_what_it_says(attempt, trained):
    attempt.save(3, "end")
    _, said = load_state(attempt.run.checkpoint(3))
    expected, path = fingerprints_of(trained.plan), attempt.run.checkpoint(3)
    assert "z_loss" not in expected["optimization"]  # unset, as where an earlier version wrote the checkpoint
    require_same({key: said[key] for key in said if key not in ("optimization", "task")}, expected, path)
    for key in ("model", "data"):
        with pytest.raises(RunFault, match=f"another {key}"):
            require_same({name: value for name, value in said.items() if name != key}, expected, path)
