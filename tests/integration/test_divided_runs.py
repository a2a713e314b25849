"""Whole runs of several processes: what ZeRO divides, 4-bit weights, and from one engine to another in the middle."""

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_tokenizer
from tests.event_lines import event_lines
from tests.integration.processes import fed, steps_of, wait_for
from tunesmith.errors import ExitCode
from tunesmith.rundir.paths import RunDir

pytestmark = pytest.mark.slow
NEEDED = ("deepspeed", "bitsandbytes")
HOLDS = Path(__file__).with_name("held_bytes.py")


@pytest.fixture(autouse=True)
def _extras():
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def on(workers: int, stage: int) -> tuple[str, ...]:
    return "--set", f"resources.workers={workers}", "--set", f"parallelism.zero_stage={stage}"


def evaluations(run: RunDir) -> tuple[float, float]:
    """The validation loss before and after."""
    before, *_, after = (event["loss"] for event in event_lines(run.events, "evaluation"))
    return before, after


def answers(run: RunDir) -> list[str]:
    return [item["answer"] for event in event_lines(run.events, "answers") for item in event["items"]]


def test_four_bit_weights_divided_over_two_ranks_train_evaluate_and_export(project):
    recipe = project.write(method={"kind": "qlora", "lora_rank": 4, "lora_alpha": 8}, optimization={"epochs": 2})
    alone = project.train(recipe, "alone")
    run = project.train(recipe, "divided", *on(2, 3))
    assert steps_of(run) == pytest.approx(steps_of(alone), abs=1e-4)
    for told in (alone, run):
        before, after = evaluations(told)
        assert after < before - 0.02
        (export,) = event_lines(told.events, "export")
        assert export["gate"]["passed"]
        assert (told.export / "adapter_model.safetensors").is_file()
    merged = project.run("export", "divided", "--merge", "--to", "merged")
    assert merged.returncode == 0, merged.stdout + merged.stderr
    assert (project.directory / "merged" / "model.safetensors").is_file()
    assert len(answers(alone)) == 2
    assert answers(run) == answers(alone)


@pytest.mark.soak
def test_a_run_goes_from_three_to_none_to_two_in_the_middle(project):
    """ZeRO-3 on two ranks is asked to save and ends with 75; one plain process goes on, then ZeRO-2 on two ends it."""
    optimization = {"epochs": 8, "learning_rate": 2e-3}
    recipe = project.write(method={"kind": "full"}, optimization=optimization, evaluation={"num_answers": 0})
    alone = project.train(recipe, "alone")
    run = RunDir(project.directory / "moved")

    def stopped_after_two_more(*command: str | Path) -> None:
        begun = max(steps_of(run), default=0)
        running = project.start(*command)
        wait_for(lambda: max(steps_of(run), default=0) >= begun + 2 or running.poll() is not None, timeout_s=200)
        running.send_signal(signal.SIGTERM)
        output, errors = running.communicate(timeout=100)
        assert running.returncode == ExitCode.PREEMPTED, output + errors

    stopped_after_two_more("train", recipe, "--run-dir", "moved", *on(2, 3))
    stopped_after_two_more("resume", "moved", *on(1, 0))
    assert max(steps_of(run)) < max(steps_of(alone))
    ended = project.run("resume", "moved", *on(2, 2))
    assert ended.returncode == 0, ended.stdout + ended.stderr

    assert steps_of(run) == pytest.approx(steps_of(alone), abs=1e-4)
    assert [(event["attempt"], event["world_size"]) for event in event_lines(run.events, "start")] == [
        (1, 2),
        (2, 1),
        (3, 2),
    ]
    assert fed(run) == fed(alone)
    (export,) = event_lines(run.events, "export")
    assert export["gate"]["passed"]


@pytest.fixture(scope="module")
def cut_smollm2(smollm2, tmp_path_factory) -> Path:
    """The first two blocks of the real SmolLM2 and the embeddings of its first 384 tokens, with a tokenizer of as many:
    the blocks are as large as they are, the head's product is not."""
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
def test_real_blocks_have_the_same_twenty_losses_under_every_engine(project, cut_smollm2):
    """Full fine-tuning, packing, unequal shares of supervised tokens on the ranks."""
    recipe = project.write(
        model={"base": str(cut_smollm2)},
        method={"kind": "full"},
        data={"validation": 0.0},
        optimization={"max_steps": 20, "global_batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-4},
        checkpoint={"every_steps": 20},
    )
    expected: dict[int, float] = {}
    for workers, stage in ((1, 0), (2, 0), (2, 1), (2, 2), (2, 3)):
        found = steps_of(project.train(recipe, f"{workers}-{stage}", *on(workers, stage)))
        assert len(found) == 20
        expected = expected or found
        assert found == pytest.approx(expected, abs=1e-5)
    assert expected[20] < expected[1] - 0.5


@pytest.mark.weights
def test_four_bits_of_the_real_model_learn_in_a_third_of_its_memory_and_half_of_that_a_rank(project, smollm2):
    """SmolLM2-135M under QLoRA: the held-out loss falls; bytes of the base on a rank, alone and under ZeRO-3."""
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
    plans = {1: run.plan, 2: project.directory / "divided.json"}
    plans[2].write_text(planned.stdout)

    def held(world_size: int) -> list[dict[str, int]]:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
        ended = subprocess.run(
            [*words, str(HOLDS), str(plans[world_size])], capture_output=True, text=True, timeout=240, check=False
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]

    (alone,) = held(1)
    assert alone["base"] < 0.4 * alone["base_in_fp32"]
    for rank in held(2):
        assert 0.45 * alone["base"] < rank["base"] < 0.6 * alone["base"]
