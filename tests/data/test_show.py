from tunesmith.configs.recipe import Recipe
from tunesmith.data.show import show
from tunesmith.data.tokenization.tokenizer import Tokenizer


def recipe_of(*files, task="chat", **data):
    return Recipe(
        name="t", model={"base": "m"}, task=task, method={"kind": "full"}, data={"train": list(files), **data}
    )


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
