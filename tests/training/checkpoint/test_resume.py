"""A run resumes only from its own checkpoints, including mirrored ones and those of earlier versions."""

import json

import pytest

from tunesmith.configs.plan import Plan
from tunesmith.configs.sections.optimization import Optimization
from tunesmith.errors import RunFault
from tunesmith.training.checkpoint.checkpoints import load_state, require_same
from tunesmith.training.checkpoint.fingerprints import fingerprints_of


def changed(plan: Plan, section: str, **values) -> Plan:
    part = getattr(plan.recipe, section).model_copy(update=values)
    return plan.model_copy(update={"recipe": plan.recipe.model_copy(update={section: part})})


def test_an_unreachable_mirror_fails_only_a_run_without_local_checkpoints(attempt, tmp_path):
    (tmp_path / "mirror").touch()
    with pytest.raises(RunFault, match="cannot be reached"):
        attempt.resume()
    attempt.save(3, "schedule")
    assert attempt.resume().step == 3
    assert any("continuing without the mirror" in warning for warning in attempt.warnings())


def test_a_mirrored_checkpoint_of_another_recipe_is_rejected(attempt, trained, elsewhere):
    attempt.save(3, "end")
    for section, key, value in (("optimization", "learning_rate", 1e-5), ("preference", "beta", 0.5)):
        again = elsewhere(changed(trained.plan, section, **{key: value}))
        with pytest.raises(RunFault, match=f"another {'task' if section == 'preference' else section}"):
            again.resume()
    again = elsewhere(changed(changed(trained.plan, "resources", workers=2), "parallelism", zero_stage=2))
    assert again.resume().step == 3


def test_a_checkpoint_of_an_earlier_version_is_compared_by_the_fingerprints_it_has(attempt, trained):
    attempt.save(3, "end")
    _, stored = load_state(attempt.run.checkpoint(3))
    expected, path = fingerprints_of(trained.plan), attempt.run.checkpoint(3)
    unset = {"z_loss", "router_loss", "offload_activations"}  # keys that an earlier version does not know
    assert json.loads(expected["optimization"]).keys() == Optimization.model_fields.keys() - unset
    require_same({key: stored[key] for key in stored if key not in ("optimization", "task")}, expected, path)
    for key in ("model", "data"):
        with pytest.raises(RunFault, match=f"another {key}"):
            require_same({name: value for name, value in stored.items() if name != key}, expected, path)
