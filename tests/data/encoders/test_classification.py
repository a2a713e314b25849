"""Labels found, numbered and put behind their texts; whatever is none is refused with its reason."""

import pytest

from tunesmith.configs.recipe import Classification
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.rows.labels import check_weights, find_labels
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError


def encoder(tiny_llama, wanted: Classification, labels: list[str], max_seq_len=64, too_long="error"):
    spec = EncodingSpec("classification", max_seq_len, too_long, wanted, tuple(labels))
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
def test_a_document_is_the_text_and_then_its_targets(tiny_llama, kind, label, targets):
    made = encoder(tiny_llama, Classification(kind=kind), ["a", "b"])
    (result,) = made.encode([{"text": "hello there", "label": label}])
    text = Tokenizer.load(tiny_llama).encode("hello there")
    (document,) = result.documents
    assert document.tokens == [*text, *targets]
    assert document.trained == [(len(text), len(text) + len(targets))]


def test_numbers_and_truths_are_labels_too_and_numbers_keep_their_order():
    rows = [{"text": "x", "label": value} for value in (10, 9, 2.0, "2")]
    assert find_labels(rows, Classification(), "f") == ["2", "9", "10"]
    assert find_labels([{"label": "--1"}, {"label": "-1"}], Classification(), "f") == ["-1", "--1"]
    truths = [{"text": "x", "label": value} for value in (True, False)]
    assert find_labels(truths, Classification(kind="binary"), "f") == ["false", "true"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "x"}, '"label" is missing'),
        ({"label": "a"}, '"text" is missing'),
        ({"text": " ", "label": "a"}, "empty"),
        ({"text": "x", "label": "c"}, "none of those"),
        ({"text": "x", "label": ["a"]}, "no label"),
        ({"text": "x", "label": 1.5}, "no label"),
        ({"text": "word " * 99, "label": "a"}, "too long"),
        ("x", "not an object"),
    ],
)
def test_a_row_that_cannot_be_learned_is_refused(tiny_llama, row, why):
    (result,) = encoder(tiny_llama, Classification(), ["a", "b"]).encode([row])
    assert result.fate == "rejected"
    assert why in result.reason
    assert result.remedy


def test_a_cut_text_keeps_its_targets(tiny_llama):
    row = {"text": "word " * 99, "label": "b"}
    (cut,) = encoder(tiny_llama, Classification(), ["a", "b"], too_long="truncate").encode([row])
    assert cut.fate == "truncated"
    assert len(cut.documents[0].tokens) == 64
    assert cut.documents[0].tokens[-1] == 1
    (left,) = encoder(tiny_llama, Classification(), ["a", "b"], too_long="drop").encode([row])
    assert left.fate == "dropped"


@pytest.mark.parametrize(
    ("wanted", "values", "why"),
    [
        (Classification(kind="binary"), ["a", "b", "c"], "two labels"),
        (Classification(), ["a", "a"], "1 different labels"),
        (Classification(labels=["a", "a"]), ["a"], "twice"),
    ],
)
def test_labels_that_make_no_task_are_refused(wanted, values, why):
    with pytest.raises(InputError, match=why):
        find_labels([{"text": "x", "label": value} for value in values], wanted, "f")


def test_weights_must_be_as_many_as_the_labels():
    with pytest.raises(InputError, match="2 weights"):
        check_weights(Classification(class_weights=[1.0, 2.0]), ["a", "b", "c"])
    check_weights(Classification(kind="binary", class_weights=[3.0]), ["a", "b"])
