"""The model proof in a plan: cached findings, refusals with both numbers, and what the plan says."""

import json
import sys

import pytest

from tunesmith.errors import InputError
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning import model_proof
from tunesmith.launcher.planning.planner import make_plan


def comparison(name, difference, holds, reason=None):
    return {"name": name, "difference": difference, "limit": 1.5e-5, "holds": holds, "reason": reason}


HOLDS = {
    "packing": True, "loss": "fused", "cached_generation": True, "attention": "sdpa",
    "comparisons": [comparison("token losses (packed, fused loss)", 6e-8, True)], "cut": ["30 layers -> the first 2"],
}  # fmt: skip
UNPACKED = {
    **HOLDS, "packing": False, "loss": "model",
    "comparisons": [comparison("loss (packed, fused loss)", None, False, "no attention interface"),
                    comparison("loss (unpacked, own logits)", 0.0, True)],
}  # fmt: skip
NOTHING = {
    **HOLDS, "packing": False, "loss": None,
    "comparisons": [comparison("loss (packed, fused loss)", 0.25, False),
                    comparison("loss (unpacked, own logits)", 0.0625, False)],
}  # fmt: skip


@pytest.fixture
def plan(a_recipe, a_model, some_data, tiny_llama):
    hardware = Hardware(4, "cores of this machine", 64 << 30, "free on this machine", frozenset())
    return make_plan(a_recipe(), a_model(directory=str(tiny_llama)), some_data(), hardware)


@pytest.fixture
def findings_are(monkeypatch):
    def set_findings(findings):
        calls = []
        monkeypatch.setattr(model_proof, "_compute", lambda directory: calls.append(directory) or findings)
        return calls

    return set_findings


def test_findings_are_computed_once(plan, findings_are, tmp_path):
    calls = findings_are(HOLDS)
    proven = [model_proof.with_proof(plan, tmp_path) for _ in range(3)]
    assert len(calls) == 1
    assert proven[0] == proven[2]
    assert proven[0].model.proof.packing
    for entry in (tmp_path / "proofs").iterdir():
        entry.write_text("{")
    model_proof.with_proof(plan, tmp_path)
    assert len(calls) == 2


def test_other_precisions_share_the_computation(plan, findings_are, tmp_path):
    calls = findings_are(HOLDS)
    for precision in ("fp32", "bf16", "fp16"):
        model_proof.prove_model(
            plan.model_copy(update={"compute": plan.compute.model_copy(update={"precision": precision})}), tmp_path
        )
    assert len(calls) == 1
    assert len(list((tmp_path / "proofs").iterdir())) == 4


@pytest.mark.parametrize("change", ["precision", "device", "method", "config"])
def test_the_key_depends_on_what_the_findings_depend_on(plan, change, tmp_path):
    key = model_proof.proof_key(plan)
    if change == "config":
        config = json.loads((tmp_path.__class__(plan.model.directory) / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": 1.0}))
        other = plan.model_copy(update={"model": plan.model.model_copy(update={"directory": str(tmp_path)})})
    elif change == "method":
        method = plan.recipe.method.model_copy(update={"kind": "full"})
        other = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"method": method})})
    else:
        value = {"precision": "bf16", "device": "cuda"}[change]
        other = plan.model_copy(update={"compute": plan.compute.model_copy(update={change: value})})
    assert model_proof.proof_key(other) != key
    assert model_proof.proof_key(plan) == key


def test_a_model_that_nothing_agrees_for_is_refused_with_both_numbers(plan, findings_are, tmp_path):
    findings_are(NOTHING)
    with pytest.raises(InputError) as caught:
        model_proof.with_proof(plan, tmp_path)
    assert "2.5e-01" in caught.value.remedy
    assert "6.2e-02" in caught.value.remedy
    assert not (tmp_path / "proofs").exists()


def test_faults_of_the_files_keep_their_place_and_remedy(plan, findings_are, tmp_path):
    findings_are({"error": {"what": "weights are missing", "where": "somewhere", "remedy": "download"}})
    with pytest.raises(InputError, match="weights are missing") as caught:
        model_proof.with_proof(plan, tmp_path)
    assert (caught.value.where, caught.value.remedy) == ("somewhere", "download")


def test_the_plan_says_how_rows_go_through_the_model_and_why(plan, findings_are, tmp_path):
    findings_are(UNPACKED)
    choice = model_proof.with_proof(plan, tmp_path).choices[-1]
    assert (choice.key, choice.value) == ("model proof", "unpacked, own logits")
    assert "no attention interface" in choice.reason
    assert "30 layers -> the first 2" in choice.reason


def test_without_torch_the_proof_is_pending(plan, monkeypatch, tmp_path):
    find_spec = model_proof.importlib.util.find_spec
    monkeypatch.setattr(model_proof.importlib.util, "find_spec", lambda n: None if n == "torch" else find_spec(n))
    pending = model_proof.with_proof(plan, tmp_path)
    assert pending.model.proof is None
    assert pending.choices[-1].value == "pending"


def test_a_child_process_finds_the_same_as_this_one(plan, monkeypatch, tmp_path):
    import torch  # noqa: F401

    here = model_proof.prove_model(plan, tmp_path / "here")
    monkeypatch.delitem(sys.modules, "torch")
    child = model_proof.prove_model(plan, tmp_path / "child")
    assert child.model_dump(exclude={"comparisons"}) == here.model_dump(exclude={"comparisons"})
    assert [c.name.split()[0] for c in child.comparisons] == [c.name.split()[0] for c in here.comparisons]
    assert here.packing
    assert here.loss == "fused"
