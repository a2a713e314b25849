"""Classification rows: labels are mapped to class indices and appended to the text; invalid ones are rejected."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from tunesmith.configs.sections.objectives import Classification
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.readers.sources import cut, read
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


# --- pairs of texts


@pytest.fixture(scope="module")
def bert_tokenizer(tmp_path_factory) -> Path:
    """A tokenizer that writes [CLS] text [SEP], and [CLS] first [SEP] second [SEP] for a pair."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(40))]
    backend = Backend(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    directory = tmp_path_factory.mktemp("bert-tokenizer")
    backend.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "sep_token": "[SEP]", "cls_token": "[CLS]"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def pairs(directory, max_seq_len=64, too_long="error", **section):
    spec = EncodingSpec("classification", max_seq_len, too_long, Classification(**section), ("a", "b"))
    return make_encoder(Tokenizer.load(directory), spec)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "w1 w2", "text_pair": "w3"},
        {"sentence1": "w1 w2", "sentence2": "w3"},
        {"premise": "w1 w2", "hypothesis": "w3"},
    ],
)
def test_a_pair_is_encoded_as_the_tokenizer_encodes_pairs(bert_tokenizer, row):
    (result,) = pairs(bert_tokenizer).encode([row | {"label": "b"}])
    expected = Tokenizer.load(bert_tokenizer).backend.encode("w1 w2", "w3").ids
    assert (expected[0], expected[-1]) == (2, 3)
    assert result.documents[0].tokens == [*expected, 1]
    (single,) = pairs(bert_tokenizer).encode([{"text": "w1 w2", "text_pair": None, "label": "b"}])
    assert single.documents[0].tokens == [2, 5, 6, 3, 1]
    assert single.key != result.key


@given(st.integers(1, 30), st.integers(1, 30), st.integers(10, 40))
@settings(max_examples=40, deadline=None)
def test_a_long_pair_is_truncated_as_transformers_does(bert_tokenizer, first, second, max_seq_len):
    texts = [" ".join(f"w{number}" for number in range(size)) for size in (first, second)]
    row = {"text": texts[0], "text_pair": texts[1], "label": "a"}
    (result,) = pairs(bert_tokenizer, max_seq_len, "truncate").encode([row])
    backend = Tokenizer.load(bert_tokenizer).backend
    backend.enable_truncation(max_seq_len - 1, strategy="longest_first")
    assert len(result.documents[0].tokens) == min(first + second + 3, max_seq_len - 1) + 1
    if abs(first - second) > 1:  # of two equal texts, either may lose the odd token
        assert result.documents[0].tokens[:-1] == backend.encode(*texts).ids
    assert result.outcome == ("truncated" if first + second + 4 > max_seq_len else "kept")


def test_a_long_pair_costs_no_more_than_its_length(bert_tokenizer):
    """What is cut off is not combined with the other text."""
    encoder = pairs(bert_tokenizer, 12, "truncate")
    for size in (10, 1000):
        row = {"text": "w1 " * size, "text_pair": "w2 " * size, "label": "a"}
        started = time.process_time()
        (result,) = encoder.encode([row])
        assert len(result.documents[0].tokens) == 12
    assert time.process_time() - started < 0.25  # of 1000 words: 3 ms; with all combinations more than 1 s


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"sentence1": "w1"}, '"text" is missing'),
        ({"premise": "w1", "sentence2": "w1"}, '"text" is missing'),
        ({"sentence1": "w1", "sentence2": " "}, '"sentence2" is empty'),
        ({"text": "w1", "text_pair": 3}, "text_pair is a number"),
    ],
)
def test_an_incomplete_pair_is_rejected_with_the_accepted_names(bert_tokenizer, row, why):
    (result,) = pairs(bert_tokenizer).encode([row | {"label": "a"}])
    assert result.outcome == "rejected"
    assert why in result.reason
    if "missing" in why:
        assert '"sentence1" and "sentence2" or "premise" and "hypothesis"' in result.remedy


# --- lists of labels in CSV cells


def test_labels_of_a_csv_cell_are_a_json_list(tmp_path, tiny_llama):
    (tmp_path / "rows.csv").write_text('text,label\nx,"[""b"", ""a""]"\ny,[]\nz,a\n')
    rows = [line.value for shard in cut(tmp_path / "rows.csv") for line in read(shard)]
    multi = Classification(kind="multi_label")
    assert find_labels(rows, multi, "f") == ["a", "b"]
    both, none, plain = make(tiny_llama, multi, ["a", "b"]).encode(rows)
    assert (both.documents[0].tokens[-2:], none.documents[0].tokens[-2:]) == ([1, 1], [0, 0])
    assert "a string, not a JSON list of labels" in plain.reason
    assert "double quotes" in plain.remedy


@pytest.mark.parametrize("cell", ["a", "['a', 'b']", "a;b", "", '"a"'])
def test_other_cells_are_named_when_no_row_has_labels(cell):
    with pytest.raises(InputError, match='the first row without a label: "label" is a string') as caught:
        find_labels([{"text": "x", "label": cell}] * 3, Classification(kind="multi_label"), "f")
    assert 'write it as ["...", "..."]' in str(caught.value.remedy)
