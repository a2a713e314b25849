"""Findings from paired intervals, computed from events and score files."""

import json

import numpy as np
import pytest

from tests.event_lines import an_event
from tests.report.test_page import page, section_of, text_of
from tunesmith.report.baselines import compare_baselines
from tunesmith.report.record import read_record
from tunesmith.rundir.event_log import EventLog

ROWS = 40


def write(path, losses) -> None:
    lines = [
        {"id": row, "loss": float(loss), "num_tokens": 9 + row, "num_correct": 3} for row, loss in enumerate(losses)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def draw(mean: float, seed: int) -> np.ndarray:
    """Losses with the same per-row difficulty, so that the difference between two draws is small."""
    return np.random.default_rng(0).normal(3.0, 1.0, ROWS) + np.random.default_rng(seed).normal(mean, 0.05, ROWS)


@pytest.fixture
def findings_for(finished):
    """findings_for(after, few_shot, retained, best) -> (findings, text of the section). Arguments: mean losses."""

    def evaluate(after, few_shot=None, retained=None, best=None):
        run, last = finished.run, finished.plan.batch.total_steps
        record = read_record(run)
        write(run.evaluation(0), draw(0.0, 1))
        for event in record.evaluations:
            if event.step:
                write(run.evaluation(event.step), draw(after, 2))
        log = EventLog(run.events)
        if best is not None:
            step = next(event.step for event in record.evaluations if 0 < event.step < last)
            write(run.evaluation(step), draw(best, 5))
            log.write(an_event("evaluation", step=step, loss=0.001, when="during"))
        if few_shot is not None:
            write(run.few_shot, draw(few_shot, 3))
            log.write(an_event("few_shot", step=0, shots=4, loss=float(draw(few_shot, 3).mean()), token_accuracy=0.3))
        if retained is not None:
            for when, step, mean in (("before", 0, 0.0), ("after", last, retained)):
                write(run.retained(step), draw(mean, 7 + step))
                log.write(an_event("retained", step=step, when=when, loss=float(draw(mean, 7 + step).mean())))
        findings = compare_baselines(read_record(run)).findings
        return findings, text_of(section_of(page(run), "baselines"))

    return evaluate


def test_improved_beyond_few_shot_prompting(findings_for):
    findings, text = findings_for(-0.5, few_shot=-0.2, retained=-0.1)
    assert findings == ["improved"]
    assert "Improved: the validation loss fell" in text
    assert "No forgetting" in text
    assert "Fine-tuning outperforms few-shot prompting" in text
    assert "Base model, few-shot (4 examples)" in text


def test_few_shot_prompting_outperforms_fine_tuning(findings_for):
    findings, text = findings_for(-0.2, few_shot=-0.5)
    assert findings == ["improved"]
    assert "Few-shot prompting outperforms fine-tuning" in text
    assert "orgetting" not in text


def test_forgetting_on_general_rows(findings_for):
    findings, text = findings_for(-0.5, retained=0.3)
    assert findings == ["improved", "forgetting"]
    assert "Forgetting: the loss on the general rows rose" in text


def test_no_clear_change(findings_for):
    findings, text = findings_for(0.004, few_shot=0.0)
    assert findings == ["no clear change"]
    assert "performs as well as fine-tuning" in text


def test_overfitted_if_an_earlier_step_was_clearly_better(findings_for):
    findings, text = findings_for(-0.1, best=-0.6)
    assert findings == ["improved", "overfitted"]
    assert "has a lower validation loss than step" in text


def test_overfitted_if_only_the_training_loss_fell(findings_for):
    findings, text = findings_for(0.4)
    assert findings == ["regressed", "overfitted"]
    assert "training loss fell" in text


def test_run_without_evaluations_has_no_findings(example):
    assert compare_baselines(read_record(example.run)).findings == []
