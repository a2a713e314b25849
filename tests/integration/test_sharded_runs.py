"""Complete multi-process runs: ZeRO sharding, 4-bit weights, and changing the engine on resume."""

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_tokenizer
from tests.event_lines import event_lines
from tests.integration.processes import rows_by_step, steps_of
from tests.waiting import LIMIT_S, wait_for
from tunesmith.errors import ExitCode
from tunesmith.rundir.paths import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.cold]  # cold: the memory of each worker is measured
REQUIRED = ("deepspeed", "bitsandbytes")
MEASURE = Path(__file__).with_name("base_bytes.py")


@pytest.fixture(autouse=True)
def _extras():
    for package in REQUIRED:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def on(workers: int, stage: int) -> tuple[str, ...]:
    return "--set", f"resources.workers={workers}", "--set", f"parallelism.zero_stage={stage}"


def evaluations(run: RunDir) -> tuple[float, float]:
    """Return the validation loss before and after training."""
    before, *_, after = (event["loss"] for event in event_lines(run.events, "evaluation"))
    return before, after


def answers(run: RunDir) -> list[str]:
    return [item["answer"] for event in event_lines(run.events, "answers") for item in event["items"]]


def test_qlora_with_zero_3_on_two_ranks_trains_evaluates_and_exports(project):
    recipe = project.write(method={"kind": "qlora", "lora_rank": 4, "lora_alpha": 8}, optimization={"epochs": 2})
    alone = project.train(recipe, "alone")
    run = project.train(recipe, "sharded", *on(2, 3))
    assert steps_of(run) == pytest.approx(steps_of(alone), abs=1e-4)
    for trained in (alone, run):
        before, after = evaluations(trained)
        assert after < before - 0.02
        (export,) = event_lines(trained.events, "export")
        assert export["gate"]["passed"]
        assert (trained.export / "adapter_model.safetensors").is_file()
    merged = project.run("export", "sharded", "--merge", "--to", "merged")
    assert merged.returncode == 0, merged.stdout + merged.stderr
    assert (project.directory / "merged" / "model.safetensors").is_file()
    assert len(answers(alone)) == 2
    assert answers(run) == answers(alone)


@pytest.mark.soak
def test_run_resumes_from_zero_3_to_one_process_to_zero_2(project):
    """ZeRO-3 on two ranks is preempted, one process without ZeRO continues, ZeRO-2 on two ranks completes the run."""
    optimization = {"epochs": 8, "learning_rate": 2e-3}
    recipe = project.write(method={"kind": "full"}, optimization=optimization, evaluation={"num_answers": 0})
    alone = project.train(recipe, "alone")
    run = RunDir(project.directory / "moved")

    def stopped_after_two_more(*command: str | Path) -> None:
        first = max(steps_of(run), default=0)
        running = project.start(*command, TUNESMITH_FAULT="step.forward:3=await_term")
        wait_for(lambda: max(steps_of(run), default=0) >= first + 2, processes=[running])
        running.send_signal(signal.SIGTERM)
        output, errors = running.communicate(timeout=LIMIT_S)
        assert running.returncode == ExitCode.PREEMPTED, output + errors

    stopped_after_two_more("train", recipe, "--run-dir", "moved", *on(2, 3))
    stopped_after_two_more("resume", "moved", *on(1, 0))
    assert max(steps_of(run)) < max(steps_of(alone))
    result = project.run("resume", "moved", *on(2, 2))
    assert result.returncode == 0, result.stdout + result.stderr

    assert steps_of(run) == pytest.approx(steps_of(alone), abs=1e-4)
    assert [(event["attempt"], event["world_size"]) for event in event_lines(run.events, "start")] == [
        (1, 2),
        (2, 1),
        (3, 2),
    ]
    assert rows_by_step(run) == rows_by_step(alone)
    (export,) = event_lines(run.events, "export")
    assert export["gate"]["passed"]


@pytest.fixture(scope="module")
def cut_smollm2(smollm2, tmp_path_factory) -> Path:
    """The first two blocks of the real SmolLM2 with 384 tokens: full-size blocks, small output layer."""
    from transformers import LlamaForCausalLM

    directory = tmp_path_factory.mktemp("cut") / "model"
    model = LlamaForCausalLM.from_pretrained(smollm2, num_hidden_layers=2)
    model.resize_token_embeddings(384)
    model.config.update({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(directory)
    make_tokenizer(directory)
    return directory


@pytest.mark.soak
@pytest.mark.weights
def test_losses_are_equal_for_every_engine_on_real_blocks(project, cut_smollm2):
    """Full fine-tuning with packing and different numbers of supervised tokens per rank."""
    recipe = project.write(
        model={"base": str(cut_smollm2)},
        method={"kind": "full"},
        data={"validation": 0.0},
        optimization={"max_steps": 20, "global_batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-4},
        checkpoint={"every_steps": 20},
    )
    expected: dict[int, float] = {}
    for workers, stage in ((1, 0), (2, 0), (2, 1), (2, 2), (2, 3)):
        losses = steps_of(project.train(recipe, f"{workers}-{stage}", *on(workers, stage)))
        assert len(losses) == 20
        expected = expected or losses
        assert losses == pytest.approx(expected, abs=1e-5)
    assert expected[20] < expected[1] - 0.5


@pytest.mark.weights
def test_qlora_base_takes_under_40_percent_of_fp32_and_half_of_that_per_rank_under_zero_3(project, smollm2):
    """SmolLM2-135M with QLoRA: validation loss, and bytes of the base on one process and per rank under ZeRO-3."""
    recipe = project.write(
        model={"base": str(smollm2)},
        method={"kind": "qlora", "lora_rank": 8, "lora_alpha": 16},
        data={"max_seq_len": 128},
        optimization={"max_steps": 4, "learning_rate": 1e-3},
        evaluation={"every_steps": None, "num_answers": 0},
        checkpoint={"every_steps": 4},
    )
    run = project.train(recipe, "real")
    before, after = evaluations(run)
    assert after < before - 0.2
    planned = project.run("plan", recipe, *on(2, 3), "--json")
    plans = {1: run.plan, 2: project.directory / "sharded.json"}
    plans[2].write_text(planned.stdout)

    def base_bytes(world_size: int) -> list[dict[str, int]]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
        result = subprocess.run(
            [*command, str(MEASURE), str(plans[world_size])], capture_output=True, text=True, timeout=300, check=False
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]

    (alone,) = base_bytes(1)
    assert alone["base"] < 0.4 * alone["base_in_fp32"]
    for rank in base_bytes(2):
        assert 0.45 * alone["base"] < rank["base"] < 0.6 * alone["base"]
