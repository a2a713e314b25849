"""The verdict by paired intervals, from events and files of scores alone."""

import json

import numpy as np
import pytest

from tests.event_lines import an_event
from tests.report.test_page import page, section_of, text_of
from tunesmith.report.record import read_record
from tunesmith.report.worth import worth_of
from tunesmith.rundir.event_log import EventLog

ROWS = 40


def write(path, losses) -> None:
    lines = [
        {"id": row, "loss": float(loss), "num_tokens": 9 + row, "num_correct": 3} for row, loss in enumerate(losses)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def draw(mean: float, seed: int) -> np.ndarray:
    """Losses that share their rows' difficulty: what differs between two draws is small."""
    return np.random.default_rng(0).normal(3.0, 1.0, ROWS) + np.random.default_rng(seed).normal(mean, 0.05, ROWS)


@pytest.fixture
def told(finished):
    """told(after, few_shot, before_retained, after_retained, best) -> (words, text of the section)."""

    def tell(after, few_shot=None, retained=None, best=None):
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
        return worth_of(read_record(run)).words, text_of(section_of(page(run), "worth"))

    return tell


def test_learned_and_prompting_would_not_have_done(told):
    words, text = told(-0.5, few_shot=-0.2, retained=-0.1)
    assert words == ["learned"]
    assert "It learned" in text
    assert "did not forget" in text
    assert "Training brought more than prompting" in text
    assert "Base model with 4 training rows in its prompt" in text


def test_prompting_alone_would_have_brought_more(told):
    words, text = told(-0.2, few_shot=-0.5)
    assert words == ["learned"]
    assert "Prompting brought more than training" in text
    assert "forget" not in text


def test_forgot(told):
    words, text = told(-0.5, retained=0.3)
    assert words == ["learned", "forgot"]
    assert "It forgot" in text


def test_nothing_changed(told):
    words, text = told(0.004, few_shot=0.0)
    assert words == ["nothing changed"]
    assert "would have done as well" in text


def test_overfitted_where_an_earlier_step_was_clearly_better(told):
    words, text = told(-0.1, best=-0.6)
    assert words == ["learned", "overfitted"]
    assert "was better on held-out rows than step" in text


def test_overfitted_where_held_out_rows_got_worse_while_training_got_better(told):
    words, text = told(0.4)
    assert words == ["got worse", "overfitted"]
    assert "training loss fell" in text


def test_a_run_without_evaluations_says_nothing(example):
    assert worth_of(read_record(example.run)).words == []
