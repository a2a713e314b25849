"""Grammars are tried in separate processes: hostile ones end there, within limits of time and memory."""

import threading
import time

import pytest

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference import grammar_trials
from tunesmith.inference.grammar import json_grammar
from tunesmith.inference.grammar_trials import CPU_S, GrammarTrials, Trial, TrialUnavailable
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


def trial_of(tokenizer: Tokenizer, schema: dict, caller: str = "") -> Trial:
    return Trial(tokenizer, json_grammar(schema), caller)


def hostile(tokenizer: Tokenizer, title: str, caller: str = "") -> Trial:
    """A grammar that takes a trial to its limits; a different one for every title."""
    return trial_of(tokenizer, {**HOSTILE["multiple"], "title": title}, caller)


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


def test_a_caller_with_many_hostile_grammars_does_not_delay_others(trials, tokenizer):
    """They run one at a time, and another caller's trial next to them."""
    done: list[str] = []
    many = [hostile(tokenizer, f"many {number}", "many") for number in range(6)]
    for number, trial in enumerate(many):
        trials.start(trial, lambda number=number: done.append(f"many {number}"))
    finished = threading.Event()
    trials.start(trial_of(tokenizer, {**ORDER, "title": "other"}, "other"), finished.set)
    assert finished.wait(120)
    assert len(done) <= 1
    for trial in many[::-1]:
        trials.cancel(trial)


def test_equal_grammars_share_a_trial_until_all_are_cancelled(trials, tokenizer):
    first, second, third = (hostile(tokenizer, "shared", caller) for caller in "abc")
    reported: list[str] = []
    finished = threading.Event()
    trials.start(first, lambda: reported.append("a"))
    trials.start(second, finished.set)
    trials.start(third, lambda: reported.append("c"))
    assert len(trials._by_key) == 1
    trials.cancel(first)
    trials.cancel(third)
    assert finished.wait(120)
    assert reported == []
    assert second.failure is trials.result(second.key)
    assert second.failure is not None
    assert "more than" in second.failure.message


def test_a_grammar_is_compiled_by_the_thread_of_its_trial(tokenizer):
    """The main thread, which runs the batches of all others, does not compile it."""
    prepared: list[tuple[str, str]] = []
    trials = GrammarTrials(lambda _, grammar: prepared.append((grammar.lark, threading.current_thread().name)))
    try:
        accepted, rejected = trial_of(tokenizer, ORDER), trial_of(tokenizer, {"type": "strin"})
        assert result(trials, accepted) is None
        assert result(trials, rejected) is not None
        assert [(lark, name.startswith("grammar-trial")) for lark, name in prepared] == [(accepted.grammar.lark, True)]
    finally:
        trials.close()


def test_a_process_that_is_killed_does_not_reject_the_grammar(tokenizer):
    """The kernel kills processes where memory is short: the grammar is tried again."""
    trials = GrammarTrials()
    try:
        assert result(trials, trial_of(tokenizer, ORDER)) is None
        first = hostile(tokenizer, "killed")
        finished = threading.Event()
        trials.start(first, finished.set)
        (running,) = trials._running.values()
        assert running.process is not None
        assert running.process._child is not None
        running.process._child.kill()
        assert finished.wait(120)
        assert isinstance(first.failure, RequestRejected)
        assert "more than" in first.failure.message
    finally:
        trials.close()


def test_a_grammar_that_could_not_be_tried_is_tried_again_by_the_next_request(tokenizer, monkeypatch):
    trials = GrammarTrials()
    try:
        monkeypatch.setattr(grammar_trials, "_WALL_S", 0.0)  # as if the machine were overloaded
        trial, finished = trial_of(tokenizer, ORDER), threading.Event()
        trials.start(trial, finished.set)
        assert finished.wait(120)
        assert isinstance(trial.failure, TrialUnavailable)
        assert not trials.is_known(trial.key)
        monkeypatch.undo()
        assert result(trials, trial_of(tokenizer, ORDER)) is None
    finally:
        trials.close()
