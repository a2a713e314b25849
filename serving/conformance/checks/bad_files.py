"""Invalid training files: the job fails with an error code and the position of the fault."""

import copy
import re
from typing import Any

from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.rows import chat_rows, completion_rows, preference_rows
from tunesmith.serving.conformance.shapes import or_not_supported, require_shape

BAD_EXAMPLE = 7
"""Number of the invalid row, from 1."""


def _nine(bench: Bench) -> None:
    _require_failed(bench, bench.create_from_rows(chat_rows(9)).id, "invalid_n_examples", "training_file")


def _ten(bench: Bench) -> None:
    job = bench.create_from_rows(chat_rows(10))
    job = bench.wait(job.id, lambda now: now.status != "validating_files", "validated files")
    require(job.status != "failed", f"a job with ten examples failed: {job.error}")
    bench.strict.fine_tuning.jobs.cancel(job.id)


def _bad_message(bench: Bench) -> None:
    _require_place(_bad(bench, lambda messages: messages[1].update(role="wizard")), message=2)


def _no_content(bench: Bench) -> None:
    _require_place(_bad(bench, lambda messages: messages[-1].pop("content")), message=3)


def _weight(bench: Bench) -> None:
    _require_place(_bad(bench, lambda messages: messages[-1].update(weight=2)), message=3)


def _bad(bench: Bench, invalidate: Any) -> str:
    """Error message of a job whose training file has one invalid row."""
    rows = copy.deepcopy(chat_rows(12))
    invalidate(rows[BAD_EXAMPLE - 1]["messages"])
    return _require_failed(bench, bench.create_from_rows(rows).id, "invalid_training_file", "training_file")


def _require_place(error: str, message: int) -> None:
    match = re.search(rf"example\D{{0,5}}{BAD_EXAMPLE}\b.{{0,40}}?message\D{{0,5}}{message}\b", error, re.I)
    require(match, f"the error does not name example {BAD_EXAMPLE}, message {message}: {error}")


def _validation(bench: Bench) -> None:
    rows = copy.deepcopy(chat_rows(4, first=500))
    rows[1]["messages"][-1]["role"] = "wizard"
    job = bench.create_from_rows(chat_rows(12), validation_file=bench.file(rows).id)
    _require_failed(bench, job.id, "invalid_validation_file", "validation_file")


def _wrong_kind(bench: Bench) -> None:
    _require_failed(bench, bench.create_from_rows(preference_rows(12)).id, "invalid_training_file", "training_file")


def _mixed_kinds(bench: Bench) -> None:
    rows = [*chat_rows(11), *completion_rows(1)]
    _require_failed(bench, bench.create_from_rows(rows).id, "invalid_training_file", "training_file")


def _chat_for_dpo(bench: Bench) -> None:
    dpo: Any = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1}}}
    file = bench.file(chat_rows(12)).id
    job = or_not_supported(lambda: bench.create(bench.strict, training_file=file, method=dpo))
    _require_failed(bench, job.id, "invalid_training_file", "training_file")


def _require_failed(bench: Bench, id: str, code: str, param: str) -> str:
    job = bench.wait_until_finished(id)
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
    Check("bad files: role", "an invalid row fails the job; the error names the example and the message", _bad_message),
    Check("bad files: no content", "content is required unless the message has tool calls", _no_content),
    Check("bad files: weight", "`weight` of an assistant message must be 0 or 1", _weight),
    Check(
        "bad files: validation", "invalid validation file: the job fails with `invalid_validation_file`", _validation
    ),
    Check("bad files: wrong kind", "row format that does not match the method: `invalid_training_file`", _wrong_kind),
    Check("bad files: mixed kinds", "all rows of a file must have the same format", _mixed_kinds),
    Check("bad files: chat rows for dpo", "dpo accepts only preference rows", _chat_for_dpo),
)
