"""Text metrics equal sacreBLEU, rouge_score and hand-computed values on random and degenerate texts."""

import json

import numpy as np
import pytest
import sacrebleu.metrics
from rouge_score.rouge_scorer import RougeScorer

from tunesmith.errors import InputError
from tunesmith.evaluation.metrics.generation import (
    distinct,
    exact_match,
    json_validity,
    length_ratio,
    stop_rate,
    token_f1,
)
from tunesmith.evaluation.metrics.overlap import ROUGE, bleu, chrf, rouge

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "tree,", "house.", "Slowly", "42", "über", "東京"]


def texts(count: int, seed: int) -> tuple[list[str], list[str]]:
    generator = np.random.default_rng(seed)
    references = [" ".join(generator.choice(WORDS, generator.integers(1, 15))) for _ in range(count)]
    answers = [
        " ".join(w if generator.random() < 0.7 else str(generator.choice(WORDS)) for w in text.split())
        for text in references
    ]
    return answers, references


CASES = {
    "random": texts(40, 0),
    "other random": texts(25, 1),
    "one": texts(1, 2),
    "equal": (["the cat sat on the mat"] * 3, ["the cat sat on the mat"] * 3),
    "nothing shared": (["x y z w"] * 3, ["the cat sat on"] * 3),
    "empty answers": (["", "", ""], ["the cat", "a dog ran", "x"]),
    "empty on both sides": (["", "the cat"], ["", ""]),
    "shorter than an n-gram": (["cat", "a"], ["cat", "b"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("function", "reference_class"), [(bleu, "BLEU"), (chrf, "CHRF")])
def test_bleu_and_chrf_equal_sacrebleu_with_its_signature(case, function, reference_class):
    answers, references = CASES[case]
    metric = getattr(sacrebleu.metrics, reference_class)()
    expected = metric.corpus_score(answers, [references]).score
    result, signature = function(answers, references)
    (measured,) = result.values()
    assert measured.value == pytest.approx(expected, abs=1e-9)
    assert signature == str(metric.get_signature())
    if len(answers) > 1:
        rest = [
            metric.corpus_score(answers[:i] + answers[i + 1 :], [references[:i] + references[i + 1 :]]).score
            for i in range(len(answers))
        ]
        assert measured.influence == pytest.approx((len(answers) - 1) * (expected - np.array(rest)), abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_rouge_equals_rouge_score(case):
    answers, references = CASES[case]
    scorer = RougeScorer(list(ROUGE))
    result = rouge(answers, references)
    for name in ROUGE:
        expected = np.mean([scorer.score(r, a)[name].fmeasure for a, r in zip(answers, references, strict=True)])
        assert result[name].value == pytest.approx(expected, abs=1e-9)


def test_match_length_and_stop_metrics_equal_hand_computed_values():
    answers, references = ["Paris", "the  Paris.", "London", "the red cat", ""], ["Paris", "paris", "Paris", "red", ""]
    result = exact_match(answers, references)
    assert result["exact_match"].value == pytest.approx(2 / 5)
    assert result["exact_match_normalised"].value == pytest.approx(3 / 5)
    assert token_f1(answers, references)["token_f1"].value == pytest.approx((1 + 1 + 0 + 2 / 3 + 1) / 5)
    assert length_ratio(answers, references)["length_ratio"].value == pytest.approx(7 / 4)
    assert stop_rate([True, True, False, True])["stop_rate"].value == 0.75
    assert stop_rate([True, True, False, True])["stop_rate"].error == pytest.approx(0.25)


def test_distinct_equals_hand_computed_values_and_leave_one_out():
    answers = ["a b a", "b c", "", "a b c"]
    result = distinct(answers)
    assert result["distinct_1"].value == 3 / 8
    assert result["distinct_2"].value == 3 / 5  # ab ba | bc | ab bc
    for name, measured in result.items():
        rest = [distinct(answers[:i] + answers[i + 1 :])[name].value for i in range(4)]
        assert measured.influence == pytest.approx(3 * (measured.value - np.array(rest)))
    assert np.isnan(distinct(["", ""])["distinct_1"].value)


def test_json_validity(tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}))
    answers = ['{"city": "Paris"}', '{"city": 3}', "{city}", "[]", '{"city": "Rome"} and more']
    result = json_validity(answers, schema)
    assert (result["valid_json"].value, result["valid_schema"].value) == (3 / 5, 1 / 5)
    schema.write_text('{"type": "no such type"}')
    with pytest.raises(InputError, match="schema"):
        json_validity(answers, schema)
