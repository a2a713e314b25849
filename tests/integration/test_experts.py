"""A complete run of a mixture of experts: adapters on attention, experts and router, from plan to verified export."""

import shutil

import pytest

from tests.conftest import make_tokenizer
from tests.event_lines import event_lines
from tests.integration.test_resume import flip_bit, losses, reopen, weights
from tests.modeling.moe_models import make_moe
from tunesmith.rundir.paths import RunDir


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_run_with_experts_is_exported_in_both_forms(project, tmp_path, form):
    make_tokenizer(tmp_path / "mixtral")
    make_moe("Mixtral", vocab_size=384, max_position_embeddings=2048).save_pretrained(tmp_path / "mixtral")
    recipe = project.write(
        model={"base": str(tmp_path / "mixtral")},
        method={"kind": "lora", "lora_rank": 4, "target_modules": ["q_proj", "experts.gate_up_proj", "gate"]},
        optimization={"max_steps": 3, "router_loss": {"coefficient": 0.1, "scope": "global"}},
        export={"form": form},
    )
    run = project.train(recipe, "experts")
    steps = list(event_lines(run.events, "step"))
    assert len(steps) == 3
    for step in steps:
        assert 1.5 < step["router_loss"] < 4.0, "2 if balanced: experts per token"
        assert step["expert_load"] >= 1.0
        assert step["router_entropy"] > 0.0
    (export,) = event_lines(run.events, "export")
    assert export["gate"]["passed"]
    assert (run.export / "adapter_config.json").is_file() == (form == "adapter")


@pytest.mark.parametrize(("family", "form"), [("Mixtral", "adapter"), ("GptOss", "merged")])
def test_a_run_with_experts_in_4_bits_is_exported_and_resumes_bit_for_bit(project, tmp_path, family, form):
    pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
    make_tokenizer(tmp_path / "base")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "vocab_size": 384}
    make_moe(family, max_position_embeddings=2048, **sizes).save_pretrained(tmp_path / "base")
    recipe = project.write(
        model={"base": str(tmp_path / "base")},
        method={"kind": "qlora", "lora_rank": 4, "target_modules": "all-linear"},
        optimization={"max_steps": 3},
        checkpoint={"every_steps": 1, "keep_last": 2},
        export={"form": form},
    )
    run = project.train(recipe, "packed")
    assert '"experts in 4 bits"' in run.plan.read_text()
    (export,) = event_lines(run.events, "export")
    assert export["gate"]["passed"]
    expected = weights(run), losses(run)
    again = RunDir(project.directory / "again")
    shutil.copytree(run.root, again.root)
    reopen(again)
    flip_bit(max(again.checkpoints.glob("step-*")) / "model.safetensors")
    result = project.run("resume", "again")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(list(event_lines(again.events, "step"))) > 3, "the last step was trained again"
    assert (weights(again), losses(again)) == expected
