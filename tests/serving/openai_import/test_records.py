"""Conversion of objects of the hosted API to rows of the store."""

import pytest

from tunesmith.serving.names import is_id, parse_tuned_name
from tunesmith.serving.openai_import.records import event_rows, file_id, job_row, kept_id, model_row

HOSTED = {
    "id": "ftjob-abcDEF0123456789abcDEF01",
    "created_at": 1_700_000_000,
    "finished_at": 1_700_000_900,
    "model": "gpt-4o-mini-2024-07-18",
    "fine_tuned_model": "ft:gpt-4o-mini-2024-07-18:acme:desk:AbCd1234",
    "status": "succeeded",
    "training_file": "file-abcdefghijklmnop",
    "validation_file": None,
    "result_files": ["file-resultsresults00"],
    "hyperparameters": {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8},
    "seed": 42,
    "trained_tokens": 5768,
    "error": {},
    "metadata": None,
}


@pytest.mark.parametrize(
    "remote", ["../../etc/passwd", "file-", "file-a/b/c/d/e/f", "ftjob-abcdefghijkl", "file-" + "x" * 90]
)
def test_an_invalid_id_is_replaced_deterministically(remote):
    id = kept_id("file-", remote)
    assert is_id(id)
    assert id.startswith("file-")
    assert id == kept_id("file-", remote) != remote


def test_a_valid_id_is_kept():
    assert kept_id("ftjob-", HOSTED["id"]) == HOSTED["id"]
    assert file_id("file-abcdefghijklmnop") == "file-abcdefghijklmnop"
    assert file_id(None) is None


def test_a_job_is_stored_as_settled_history():
    row = job_row(HOSTED, "acme", "api.openai.com")
    assert row.settled is True
    assert row.run_dir is None
    assert row.error is None  # the hosted API sends {} for no error
    assert row.method == {"type": "supervised", "supervised": {"hyperparameters": HOSTED["hyperparameters"]}}
    assert row.labels == {"imported_from": "api.openai.com"}
    assert (row.seed, row.trained_tokens, row.result_files) == (42, 5768, ["file-resultsresults00"])


def test_hyperparameters_are_read_from_method_alone():
    numbers = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 0.3, "beta": 0.1}
    job = {**HOSTED, "hyperparameters": None, "method": {"type": "dpo", "dpo": {"hyperparameters": numbers}}}
    assert job_row(job, "acme", "api.openai.com").hyperparameters == numbers


def test_the_origin_key_does_not_replace_a_metadata_pair():
    pairs = {f"key {number}": "value" for number in range(16)}
    assert job_row({**HOSTED, "metadata": pairs}, "acme", "api.openai.com").labels == pairs


@pytest.mark.parametrize("fields", [{"status": "running"}, {"model": None}, {"training_file": None}])
def test_an_invalid_or_unfinished_job_is_rejected(fields):
    with pytest.raises(ValueError, match="not a finished job"):
        job_row({**HOSTED, **fields}, "acme", "api.openai.com")


def test_events_are_in_order_followed_by_the_origin():
    row = job_row(HOSTED, "acme", "api.openai.com")
    newest_first = [
        {
            "id": "ftevent-b",
            "created_at": 20,
            "level": "info",
            "message": "second",
            "type": "metrics",
            "data": {"step": 1},
        },
        {"id": "ftevent-a", "created_at": 10, "level": "strange", "message": "first", "data": None},
    ]
    first, second, origin = event_rows(newest_first, row, "api.openai.com", 99.0)
    assert (first.message, first.level, first.type, first.data) == ("first", "info", "message", {})
    assert (second.message, second.type, second.data) == ("second", "metrics", {"step": 1})
    assert origin.message.startswith("Imported from api.openai.com as history")
    assert HOSTED["fine_tuned_model"] in origin.message


def test_an_imported_model_has_a_nonexistent_base_and_adapter(tmp_path):
    row = job_row(HOSTED, "acme", "api.openai.com")
    model = model_row(HOSTED["fine_tuned_model"], row, "api.openai.com", tmp_path)
    assert " " in model.base  # names of bases have no spaces
    assert not (tmp_path / model.adapter).exists()
    assert str(model.adapter).startswith(str(tmp_path))  # deleting the model deletes only below the server's home
    assert parse_tuned_name(model.name) is not None
