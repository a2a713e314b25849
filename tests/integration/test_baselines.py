"""A complete run with general rows and a few-shot baseline, then `tunesmith evaluate` on it."""

import json
import signal

from tests.event_lines import event_lines
from tunesmith.report.baselines import compare_baselines
from tunesmith.report.record import read_record


def test_run_is_compared_with_its_baselines_and_evaluate_agrees(project, chat_rows):
    (project.directory / "general.jsonl").write_text(
        "".join(
            json.dumps({"text": f"The licence of work {n} is granted as is, in section {n}."}) + "\n" for n in range(8)
        )
    )
    recipe = project.write(evaluation={"retain": "general.jsonl", "few_shot": 2, "num_answers": 0})
    run = project.train(recipe, "run")
    record = read_record(run)
    events = {(event["kind"], event.get("when")) for event in event_lines(run.events)}
    assert {("retained", "before"), ("retained", "after"), ("few_shot", None)} <= events
    baselines = compare_baselines(record)
    assert baselines.base is not None
    assert baselines.few_shot is not None
    assert baselines.retained is not None
    assert baselines.findings[0] == "improved"
    assert record.few_shot.shots == 2
    assert record.few_shot.scores.num_tokens == record.evaluation("before").scores.num_tokens
    assert record.evaluation("after").scores.bits_per_byte > 0
    assert "Comparison with baselines" in run.report.read_text()

    held_out = project.directory / "held-out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in chat_rows[:6]))
    arguments = [
        "evaluate",
        "run",
        "--data",
        "held-out.jsonl",
        "--few-shot",
        "2",
        "--metrics",
        "exact_match,rouge,bleu",
    ]
    more = ["--max-new-tokens", "6", "--out", "out", "--json"]
    killed = project.run(*arguments, *more, TUNESMITH_FAULT="evaluation.stored:2=kill")
    assert killed.returncode == -signal.SIGKILL
    resumed = project.run(*arguments, *more)
    assert resumed.returncode == 0, resumed.stderr
    work = project.directory / "out" / "work"
    num_claims = sum(len(path.read_text().splitlines()) for path in work.glob("*/claims.jsonl"))
    num_batches = sum(len(json.loads(path.read_text())) for path in work.glob("*/batches.json"))
    assert num_claims == num_batches > 2  # batches stored before the kill were not repeated
    summary = json.loads(resumed.stdout)
    assert list(summary["candidates"]) == ["model", "baseline", "few_shot"]
    assert summary["comparison"]["loss"]["high"] < 0
    lines = [json.loads(line) for line in (project.directory / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(6))
    assert {"loss", "num_tokens", "output"} <= set(lines[0])
    shown = project.run(*arguments, "--max-new-tokens", "6", "--out", "out")
    assert shown.returncode == 0, shown.stderr
    assert "baseline, 2 examples" in shown.stdout
    assert "difference in loss:" in shown.stdout
    assert "rougeL" in shown.stdout


def test_two_ranks_share_the_scoring_and_get_the_same_numbers(project):
    """Compares the untrained model only: training sums in a different order."""
    recipe = project.write(optimization={"max_steps": 1}, evaluation={"num_answers": 0})
    alone = project.train(recipe, "alone")
    run = project.train(recipe, "two", "--set", "resources.workers=2")
    losses = [read_record(one).loss("before") for one in (alone, run)]
    assert losses[0] == losses[1]
    assert run.evaluation(0).read_bytes() == alone.evaluation(0).read_bytes()
    assert not (run.evaluations / "work").exists()
