"""Classification rows: labels are mapped to class indices and appended to the text; invalid ones are rejected."""

import pytest

from tunesmith.configs.recipe import Classification
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.rows.labels import check_weights, find_labels
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError


def make(tiny_llama, section: Classification, labels: list[str], max_seq_len=64, too_long="error"):
    spec = EncodingSpec("classification", max_seq_len, too_long, section, tuple(labels))
    return make_encoder(Tokenizer.load(tiny_llama), spec)


@pytest.mark.parametrize(
    ("kind", "label", "targets"),
    [
        ("single_label", "b", [1]),
        ("binary", "b", [1]),
        ("binary", "a", [0]),
        ("multi_label", ["b"], [0, 1]),
        ("multi_label", [], [0, 0]),
    ],
)
def test_a_document_is_the_text_followed_by_its_targets(tiny_llama, kind, label, targets):
    encoder = make(tiny_llama, Classification(kind=kind), ["a", "b"])
    (result,) = encoder.encode([{"text": "hello there", "label": label}])
    text = Tokenizer.load(tiny_llama).encode("hello there")
    (document,) = result.documents
    assert document.tokens == [*text, *targets]
    assert document.supervised == [(len(text), len(text) + len(targets))]


def test_labels_may_be_numbers_or_booleans_and_numbers_are_sorted_by_value():
    rows = [{"text": "x", "label": value} for value in (10, 9, 2.0, "2")]
    assert find_labels(rows, Classification(), "f") == ["2", "9", "10"]
    assert find_labels([{"label": "--1"}, {"label": "-1"}], Classification(), "f") == ["-1", "--1"]
    booleans = [{"text": "x", "label": value} for value in (True, False)]
    assert find_labels(booleans, Classification(kind="binary"), "f") == ["false", "true"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "x"}, '"label" is missing'),
        ({"label": "a"}, '"text" is missing'),
        ({"text": " ", "label": "a"}, "empty"),
        ({"text": "x", "label": "c"}, "not a label"),
        ({"text": "x", "label": ["a"]}, "not a label"),
        ({"text": "x", "label": 1.5}, "not a label"),
        ({"text": "word " * 99, "label": "a"}, "too long"),
        ("x", "not an object"),
    ],
)
def test_an_invalid_row_is_rejected_with_a_reason(tiny_llama, row, why):
    (result,) = make(tiny_llama, Classification(), ["a", "b"]).encode([row])
    assert result.outcome == "rejected"
    assert why in result.reason
    assert result.remedy


def test_a_truncated_text_keeps_its_targets(tiny_llama):
    row = {"text": "word " * 99, "label": "b"}
    (truncated,) = make(tiny_llama, Classification(), ["a", "b"], too_long="truncate").encode([row])
    assert truncated.outcome == "truncated"
    assert len(truncated.documents[0].tokens) == 64
    assert truncated.documents[0].tokens[-1] == 1
    (dropped,) = make(tiny_llama, Classification(), ["a", "b"], too_long="drop").encode([row])
    assert dropped.outcome == "dropped"


@pytest.mark.parametrize(
    ("section", "values", "why"),
    [
        (Classification(kind="binary"), ["a", "b", "c"], "two labels"),
        (Classification(), ["a", "a"], "too few labels to classify: 1"),
        (Classification(labels=["a", "a"]), ["a"], "duplicate label"),
    ],
)
def test_unusable_labels_are_an_input_error(section, values, why):
    with pytest.raises(InputError, match=why):
        find_labels([{"text": "x", "label": value} for value in values], section, "f")


def test_the_number_of_weights_must_match_the_number_of_labels():
    with pytest.raises(InputError, match="2 weights"):
        check_weights(Classification(class_weights=[1.0, 2.0]), ["a", "b", "c"])
    check_weights(Classification(kind="binary", class_weights=[3.0]), ["a", "b"])
