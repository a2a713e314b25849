"""Files that a job fails on, with the code and the place of what is wrong."""

import copy
import re
from typing import Any

from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.rows import chat_rows, completion_rows, preference_rows
from tunesmith.serving.conformance.shapes import or_not_supported, require_shape

BAD_EXAMPLE = 7
"""Counted from 1: the row that is spoilt."""


def _nine(bench: Bench) -> None:
    _require_failed(bench, bench.create_of(chat_rows(9)).id, "invalid_n_examples", "training_file")


def _ten(bench: Bench) -> None:
    job = bench.create_of(chat_rows(10))
    job = bench.wait(job.id, lambda now: now.status != "validating_files", "checked files")
    require(job.status != "failed", f"ten examples fail: {job.error}")
    bench.strict.fine_tuning.jobs.cancel(job.id)


def _bad_message(bench: Bench) -> None:
    _require_place(_bad(bench, lambda messages: messages[1].update(role="wizard")), message=2)


def _no_content(bench: Bench) -> None:
    _require_place(_bad(bench, lambda messages: messages[-1].pop("content")), message=3)


def _weight(bench: Bench) -> None:
    _require_place(_bad(bench, lambda messages: messages[-1].update(weight=2)), message=3)


def _bad(bench: Bench, spoil: Any) -> str:
    """The words of a job's failure whose training file has one spoilt row."""
    rows = copy.deepcopy(chat_rows(12))
    spoil(rows[BAD_EXAMPLE - 1]["messages"])
    return _require_failed(bench, bench.create_of(rows).id, "invalid_training_file", "training_file")


def _require_place(words: str, message: int) -> None:
    told = re.search(rf"example\D{{0,5}}{BAD_EXAMPLE}\b.{{0,40}}?message\D{{0,5}}{message}\b", words, re.I)
    require(told, f"the message does not name example {BAD_EXAMPLE}, message {message}: {words}")


def _validation(bench: Bench) -> None:
    rows = copy.deepcopy(chat_rows(4, first=500))
    rows[1]["messages"][-1]["role"] = "wizard"
    job = bench.create_of(chat_rows(12), validation_file=bench.file(rows).id)
    _require_failed(bench, job.id, "invalid_validation_file", "validation_file")


def _wrong_kind(bench: Bench) -> None:
    _require_failed(bench, bench.create_of(preference_rows(12)).id, "invalid_training_file", "training_file")


def _mixed_kinds(bench: Bench) -> None:
    rows = [*chat_rows(11), *completion_rows(1)]
    _require_failed(bench, bench.create_of(rows).id, "invalid_training_file", "training_file")


def _chat_for_dpo(bench: Bench) -> None:
    dpo: Any = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1}}}
    file = bench.file(chat_rows(12)).id
    job = or_not_supported(lambda: bench.create(bench.strict, training_file=file, method=dpo))
    _require_failed(bench, job.id, "invalid_training_file", "training_file")


def _require_failed(bench: Bench, id: str, code: str, param: str) -> str:
    job = bench.end_of(id)
    require_equal(job.status, "failed", "the status")
    require_shape(job)
    require(job.error is not None, "a failed job has no error")
    assert job.error is not None
    require_equal(job.error.code, code, "error.code")
    require_equal(job.error.param, param, "error.param")
    require(job.fine_tuned_model is None, "a failed job has a model")
    return job.error.message


CHECKS = (
    Check("bad files: nine examples", "fewer than 10 examples: the job fails with `invalid_n_examples`", _nine),
    Check("bad files: ten examples", "ten examples are enough", _ten),
    Check("bad files: role", "a bad line fails the job, naming example and message number", _bad_message),
    Check("bad files: no content", "content is needed unless there are tool calls", _no_content),
    Check("bad files: weight", "an assistant message may carry `weight` 0 or 1, nothing else", _weight),
    Check("bad files: validation", "a bad validation file: `invalid_validation_file`", _validation),
    Check("bad files: wrong kind", "a file of the wrong kind for the method: `invalid_training_file`", _wrong_kind),
    Check("bad files: mixed kinds", "one file holds one kind of lines", _mixed_kinds),
    Check("bad files: chat rows for dpo", "dpo takes preference rows only", _chat_for_dpo),
)
