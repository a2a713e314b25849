"""Which files of a directory are training data."""

import pytest

from tunesmith.data.readers.directories import data_files
from tunesmith.errors import InputError

SUFFIXES = (".jsonl", ".csv")


def files(*names: str) -> list[str]:
    return data_files(names, SUFFIXES, "rows")


def test_hidden_files_and_folders_are_skipped():
    hidden = [".ipynb_checkpoints/train-checkpoint.jsonl", ".git/x.jsonl", ".hidden.jsonl", "a/.cache/b.jsonl"]
    assert files("train.jsonl", "a/more.jsonl", "notes.txt", *hidden) == ["a/more.jsonl", "train.jsonl"]


@pytest.mark.parametrize(
    "name",
    [
        "latest_orders.jsonl",
        "contest.jsonl",
        "devices.csv",
        "valida.jsonl",
        "evals_of_train.jsonl",
        "attestations/a.csv",
    ],
)
def test_words_that_only_contain_test_are_training_files(name):
    assert files("train.jsonl", name) == sorted(["train.jsonl", name])


@pytest.mark.parametrize(
    "name",
    ["test.jsonl", "test/rows.jsonl", "data/eval-2/rows.csv", "my_validation.jsonl", "Dev.jsonl", "rows.test.jsonl"],
)
def test_held_out_files_among_training_files_are_rejected(name):
    with pytest.raises(InputError, match="mixes training files") as caught:
        files("train.jsonl", name)
    assert name in str(caught.value)
    assert "data.validation" in str(caught.value.remedy)


def test_a_directory_of_held_out_files_alone_is_accepted():
    assert files("test/a.jsonl", "test/b.jsonl") == ["test/a.jsonl", "test/b.jsonl"]
    assert files("train_test_split/train.jsonl", "train_test_split/more.jsonl")
