import pytest

from tunesmith.configs.recipe import Recipe
from tunesmith.data.show import show
from tunesmith.data.tokenization.tokenizer import Tokenizer


def recipe_of(*files, task="chat", **sections):
    data = {"train": list(files)}
    return Recipe(name="t", model={"base": "m"}, task=task, method={"kind": "full"}, data=data, **sections)


def test_segments_separate_trained_from_untrained_text(tmp_path, write_jsonl, smollm2):
    row = {"messages": [{"role": "user", "content": "Hé?"}, {"role": "assistant", "content": "\n\nJa 😀"}]}
    write_jsonl("a.jsonl", [row])
    (shown,) = show(recipe_of("a.jsonl"), Tokenizer.load(smollm2), recipe_dir=tmp_path)
    prompt = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHé?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert shown.segments == [(prompt, False), ("\n\nJa 😀<|im_end|>", True), ("\n", False)]
    assert (shown.source, shown.line, shown.row, shown.outcome) == ("a.jsonl", 1, 0, "kept")
    assert 0 < shown.supervised_tokens < shown.tokens


def test_rows_are_numbered_over_all_files_and_rejected_rows_have_a_reason(tmp_path, write_jsonl, tiny):
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    write_jsonl("a.jsonl", [good, good])
    write_jsonl("b.jsonl", ["{", good])
    shown = list(show(recipe_of("a.jsonl", "b.jsonl"), tiny, recipe_dir=tmp_path, first=1, limit=2))
    assert [(row.row, row.source, row.line, row.outcome) for row in shown] == [
        (1, "a.jsonl", 2, "kept"),
        (2, "b.jsonl", 1, "rejected"),
    ]
    assert shown[1].reason
    assert shown[1].segments == []


def test_the_first_token_is_not_shown_as_trained(tmp_path, write_jsonl, tiny):
    write_jsonl("a.jsonl", [{"text": "Licensed works"}])
    (shown,) = show(recipe_of("a.jsonl", task="text"), tiny, recipe_dir=tmp_path)
    assert [trained for _, trained in shown.segments] == [False, True]
    assert "".join(text for text, _ in shown.segments) == "Licensed works<|im_end|>"
    assert shown.supervised_tokens == shown.tokens - 1


@pytest.mark.parametrize(
    ("kind", "label", "names"),
    [
        ("single_label", "refund", ["refund"]),
        ("binary", "access", ["access"]),
        ("multi_label", ["access", "refund"], ["access", "refund"]),
        ("multi_label", [], []),
    ],
)
def test_labels_are_shown_by_name_and_not_as_tokens(tmp_path, write_jsonl, tiny, kind, label, names):
    other = ["access"] if kind == "multi_label" else "access"
    refund = ["refund"] if kind == "multi_label" else "refund"
    rows = [{"text": "Money back", "label": value} for value in (label, other, refund)]
    write_jsonl("a.jsonl", rows)
    recipe = recipe_of("a.jsonl", task="classification", classification={"kind": kind})
    shown = next(iter(show(recipe, tiny, recipe_dir=tmp_path)))
    assert shown.labels == names
    assert "".join(text for text, _ in shown.segments) == "Money back"
    assert not any(trained for _, trained in shown.segments)
    assert shown.tokens == shown.supervised_tokens + len(tiny.encode("Money back"))


def test_both_answers_of_a_pair_are_shown(tmp_path, write_jsonl, tiny):
    write_jsonl("a.jsonl", [{"prompt": "Hi", "chosen": "Good day.", "rejected": "What?"}])
    (shown,) = show(recipe_of("a.jsonl", task="preference"), tiny, recipe_dir=tmp_path)
    parts = dict(shown.parts())
    trained = {name: "".join(text for text, trained in part if trained) for name, part in parts.items()}
    assert list(trained) == ["chosen", "rejected"]
    assert "Good day." in trained["chosen"]
    assert "What?" in trained["rejected"]
    assert all("Hi" in "".join(text for text, trained in part if not trained) for part in parts.values())
    assert [list(segment) for part in parts.values() for segment in part] == [
        list(segment) for segment in shown.as_json()["segments"]
    ]


@pytest.mark.parametrize(("label", "name"), [(True, "good"), (False, "bad")])
def test_the_rating_of_an_answer_is_shown_by_name(tmp_path, write_jsonl, tiny, label, name):
    write_jsonl("a.jsonl", [{"prompt": "Hi", "completion": "Good day.", "label": label}])
    (shown,) = show(recipe_of("a.jsonl", task="kto"), tiny, recipe_dir=tmp_path)
    write_jsonl("b.jsonl", [{"prompt": "Hi", "completion": "Good day."}])
    (chat,) = show(recipe_of("b.jsonl"), tiny, recipe_dir=tmp_path)
    assert (shown.labels, chat.labels) == ([name], None)
    assert shown.segments == chat.segments


def test_a_rejected_row_has_no_labels(tmp_path, write_jsonl, tiny):
    write_jsonl("a.jsonl", [{"prompt": "Hi", "completion": "", "label": True}])
    (shown,) = show(recipe_of("a.jsonl", task="kto"), tiny, recipe_dir=tmp_path)
    assert (shown.segments, shown.labels, shown.parts()) == ([], None, [("", [])])
