"""Whole runs of several processes through the worker: ZeRO-3, 4-bit weights, and from one engine to another."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest

from tunesmith.configs.plan import Plan, read_plan
from tunesmith.launcher.division import choose_division, parallelism_facts
from tunesmith.launcher.memory import footprint
from tunesmith.rundir.events import read_events
from tunesmith.rundir.ledger import read_ledger
from tunesmith.rundir.paths import RunDir

pytestmark = pytest.mark.slow
NEEDED = ("deepspeed", "bitsandbytes")


@pytest.fixture(autouse=True)
def _extras():
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def divided(plan: Plan, stage: int, world_size: int) -> Plan:
    """The same plan for several processes, as the planner would have made it."""
    recipe = plan.recipe
    recipe = recipe.model_copy(update={"parallelism": recipe.parallelism.model_copy(update={"zero_stage": stage})})
    division = choose_division(
        recipe,
        plan.model,
        footprint(recipe, plan.model, bf16=False),
        longest_tokens=plan.data.train.longest_tokens,
        memory_bytes=8 << 30,
        world_size=world_size,
        device="cpu",
        precision="fp32",
    )
    facts = parallelism_facts(division, recipe, plan.model, plan.batch, device="cpu", precision="fp32")
    compute = plan.compute.model_copy(update={"world_size": world_size, "threads_per_rank": 1})
    return plan.model_copy(update={"recipe": recipe, "compute": compute, "parallelism": facts})


def start(run: RunDir, plan: Plan, attempt: int, port: int) -> list[subprocess.Popen]:
    """The plan's workers, as a launcher starts them."""
    plan.write(run.plan)
    world_size = plan.compute.world_size
    processes = []
    for rank in range(world_size):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in own.items()}}
        call = [sys.executable, "-P", "-m", "tunesmith.training.worker", str(run.root), "--attempt", str(attempt)]
        log = run.root / f"worker-{attempt}-{rank}.log"
        with log.open("w") as output:
            processes.append(subprocess.Popen(call, env=environment, stdout=output, stderr=subprocess.STDOUT))
    return processes


def require_codes(run: RunDir, processes: list[subprocess.Popen], code: int) -> None:
    codes = [process.wait(timeout=240) for process in processes]
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(run.root.glob("worker-*.log")))
    assert codes == [code] * len(processes), logs
    assert not [line for line in logs.splitlines() if "DeepSpeed" in line or "WARNING" in line or "kernels" in line]


def losses(run: RunDir) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in read_events(run.events, "step")}


def test_four_bit_weights_divided_over_two_ranks_train_evaluate_and_export(project, free_port):
    method = {"kind": "qlora", "lora_rank": 4, "lora_alpha": 8}
    recipe = project.write("alone.yaml", method=method, optimization={"epochs": 2})
    alone = project.train(recipe, "alone")
    run = RunDir(project.directory / "divided")
    run.create()
    require_codes(run, start(run, divided(read_plan(alone.plan), 3, 2), 1, free_port), 0)

    expected, found = losses(alone), losses(run)
    assert found.keys() == expected.keys()
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-4
    for told in (alone, run):
        before, *_, after = (event["loss"] for event in read_events(told.events, "evaluation"))
        assert after < before - 0.02
        (export,) = read_events(told.events, "export")
        assert export["gate"]["passed"]
        assert (told.export / "adapter_model.safetensors").is_file()
    merged = project.run("export", "divided", "--merge", "--to", "merged")
    assert merged.returncode == 0, merged.stdout + merged.stderr
    assert (project.directory / "merged" / "model.safetensors").is_file()
    assert len(answers(alone)) == 2
    assert answers(run) == answers(alone)


def test_a_run_goes_from_three_to_none_to_two_in_the_middle(project, free_port):
    """ZeRO-3 on two ranks is asked to save and ends with 75; one plain process goes on, then ZeRO-2 on two ends it."""
    optimization = {"epochs": 2, "learning_rate": 2e-3}
    recipe = project.write(
        "alone.yaml", method={"kind": "full"}, optimization=optimization, evaluation={"num_answers": 0}
    )
    alone = project.train(recipe, "alone")
    plan, expected = read_plan(alone.plan), losses(alone)
    run = RunDir(project.directory / "moved")
    run.create()

    processes = start(run, divided(plan, 3, 2), 1, free_port)
    wait_for_step(run, 2, processes)
    processes[1].send_signal(signal.SIGTERM)
    require_codes(run, processes, 75)
    processes = start(run, plan, 2, free_port)
    wait_for_step(run, max(losses(run)) + 2, processes)
    processes[0].send_signal(signal.SIGTERM)
    require_codes(run, processes, 75)
    assert max(losses(run)) < max(expected)
    require_codes(run, start(run, divided(plan, 2, 2), 3, free_port + 1), 0)

    found = losses(run)
    assert found.keys() == expected.keys()
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-4
    assert [event["attempt"] for event in read_events(run.events, "start")] == [1, 2, 3]
    assert rows_of(run) == rows_of(alone)
    (export,) = read_events(run.events, "export")
    assert export["gate"]["passed"]


def answers(run: RunDir) -> list[str]:
    return [item["answer"] for event in read_events(run.events, "answers") for item in event["items"]]


def wait_for_step(run: RunDir, step: int, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 200
    while max(losses(run), default=0) < step:
        assert all(process.poll() is None for process in processes), [process.poll() for process in processes]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows_of(run: RunDir) -> dict[int, list[int]]:
    """Step -> the rows that fed it, over all ranks."""
    ledger = read_ledger(run)
    return {step: sorted(row for entry in entries for row in entry.rows) for step, entries in ledger.items()}
