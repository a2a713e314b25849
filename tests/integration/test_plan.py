"""`tunesmith plan` on this machine and for machines elsewhere, with a probe, and what earlier runs add to it."""

import json

from tests.event_lines import event_lines
from tunesmith.errors import ExitCode


def test_a_probe_measures_what_a_run_then_needs(project):
    recipe = project.write()
    probed = project.run("plan", recipe, "--probe", "--json")
    assert probed.returncode == 0, probed.stderr
    plan, probe = json.loads(probed.stdout).values()
    run = project.train(recipe, "run")
    steps = list(event_lines(run.events, "step"))
    assert 1 <= probe["step"] <= len(steps)
    assert probe["num_tokens"] == steps[probe["step"] - 1]["num_tokens"]
    peak = max(step["peak_memory_bytes"] for step in steps)
    assert 0.8 * peak < probe["peak_bytes"] < 1.25 * peak
    assert 0 < probe["step_s"] < 60
    assert sorted(path.name for path in project.directory.iterdir()) == ["chats.jsonl", "recipe.yaml", "run"]
    assert plan["batch"]["total_steps"] == len(steps)


def test_a_probe_runs_every_process_of_the_plan(project):
    probed = project.run("plan", project.write(), "--probe", "--set", "resources.workers=2")
    assert probed.returncode == 0, probed.stderr
    assert "peak memory" in probed.stdout
    assert "estimated" in probed.stdout


def test_a_probe_of_a_preference_task_needs_no_reference_scores(project):
    pair = {"prompt": "Colour?", "chosen": "It is blue.", "rejected": "It is a long story about red and green."}
    rows = [pair, {**pair, "chosen": "blue " * 20}] * 8
    (project.directory / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = project.write(task="preference", data={"train": ["pairs.jsonl"], "packing": False, "validation": 0.0})
    probed = project.run("plan", recipe, "--probe", "--json", "--set", "optimization.global_batch_size=2")
    assert probed.returncode == 0, probed.stderr
    assert json.loads(probed.stdout)["probe"]["peak_bytes"] > 0


def test_a_probe_that_fails_says_why(project):
    failed = project.run("plan", project.write(), "--probe", TUNESMITH_FAULT="probe.step=raise")
    assert failed.returncode == ExitCode.FAULT
    assert "the probe failed" in failed.stderr
    assert "Traceback" not in failed.stderr
    full = project.run("plan", project.write(), "--probe", TUNESMITH_FAULT="probe.step=oom")
    assert full.returncode == ExitCode.BAD_INPUT
    assert "optimization.micro_batch_size" in full.stderr
    killed = project.run("plan", project.write(), "--probe", TUNESMITH_FAULT="probe.step=kill")
    assert killed.returncode != 0
    assert "Traceback" not in killed.stderr


def test_a_probe_is_of_this_machine(project):
    for other, name in ((("--gpus", "8xH100"), "--gpus"), (("--compare",), "--compare")):
        refused = project.run("plan", project.write(), "--probe", *other)
        assert refused.returncode == ExitCode.BAD_INPUT
        assert f"omit {name}" in refused.stderr


def test_a_plan_for_gpus_elsewhere(project):
    planned = project.run("plan", project.write(precision="auto"), "--gpus", "2x4xH100", "--json")
    assert planned.returncode == 0, planned.stderr
    compute = json.loads(planned.stdout)["compute"]
    assert (compute["device"], compute["world_size"], compute["nodes"]) == ("cuda", 8, 2)
    assert compute["estimated_step_s"] > 0
    wrong = project.run("plan", project.write(), "--gpus", "8xFOO")
    assert wrong.returncode == ExitCode.BAD_INPUT
    assert "2x8xH100" in wrong.stderr


def test_a_comparison_of_strategies_and_what_earlier_runs_needed(project):
    recipe = project.write()
    compared = project.run("plan", recipe, "--compare", "--json", "--set", "resources.workers=2")
    assert compared.returncode == 0, compared.stderr
    strategies = json.loads(compared.stdout)
    assert {one["zero_stage"] for one in strategies if one["fits"]} == {0, 1, 2, 3}
    assert sum(one["fastest"] for one in strategies) == 1
    assert "like this" not in project.run("plan", recipe, TUNESMITH_CACHE=str(project.directory / "c")).stdout
    project.train(recipe, "run", TUNESMITH_CACHE=str(project.directory / "c"))
    planned = project.run("plan", recipe, TUNESMITH_CACHE=str(project.directory / "c"))
    assert "1 earlier run like this on this machine" in planned.stdout
