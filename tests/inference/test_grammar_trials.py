"""Grammars are tried in separate processes: hostile ones end there, within limits of time and memory."""

import threading
import time

import pytest

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.grammar import json_grammar
from tunesmith.inference.grammar_trials import CPU_S, GrammarTrials, Trial
from tunesmith.inference.types import RequestRejected

HOSTILE = {
    "multiple": {"type": "integer", "multipleOf": 123456789},
    "nested": {"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 7654321}}, "required": ["n"]},
}
ORDER = {"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 5}}, "required": ["n"]}


@pytest.fixture(scope="module")
def tokenizer(tiny_llama) -> Tokenizer:
    return Tokenizer.load(tiny_llama)


@pytest.fixture(scope="module")
def trials():
    trials = GrammarTrials()
    yield trials
    trials.close()


def trial_of(tokenizer: Tokenizer, schema: dict) -> Trial:
    return Trial(tokenizer, json_grammar(schema))


def result(trials: GrammarTrials, trial: Trial) -> RequestRejected | None:
    done = threading.Event()
    trials.start(trial, done.set)
    assert done.wait(120)
    assert trials.is_known(trial.key)
    return trials.result(trial.key)


def test_ordinary_grammars_are_accepted(trials, tokenizer):
    assert result(trials, trial_of(tokenizer, ORDER)) is None
    assert result(trials, trial_of(tokenizer, {"type": "array", "items": ORDER})) is None


@pytest.mark.parametrize("name", HOSTILE)
def test_a_grammar_beyond_the_limits_is_rejected_and_the_next_one_is_tried(trials, tokenizer, name):
    rejection = result(trials, trial_of(tokenizer, HOSTILE[name]))
    assert rejection is not None
    assert (rejection.code, rejection.data["parameter"]) == ("invalid_schema", "response_format")
    assert f"more than {CPU_S:.0f} s" in rejection.message
    assert result(trials, trial_of(tokenizer, {**ORDER, "title": name})) is None


def test_an_unsupported_schema_has_the_reason_of_the_compiler(trials, tokenizer):
    rejection = result(trials, trial_of(tokenizer, {"type": "strin"}))
    assert rejection is not None
    assert "strin" in rejection.message
    assert "more than" not in rejection.message


def test_a_cancelled_trial_ends_at_once_and_is_not_reported(tokenizer):
    trials = GrammarTrials()
    try:
        assert result(trials, trial_of(tokenizer, ORDER)) is None  # the process runs
        reported = threading.Event()
        running, queued = (trial_of(tokenizer, {**HOSTILE["multiple"], "title": title}) for title in "ab")
        for trial in (running, queued):
            trials.start(trial, reported.set)
        time.sleep(0.2)
        for trial in (running, queued):
            trials.cancel(trial)
        assert result(trials, trial_of(tokenizer, {**ORDER, "title": "c"})) is None
        assert not reported.is_set()
        assert not trials.is_known(running.key)
        assert not trials.is_known(queued.key)
    finally:
        trials.close()
