"""A tokenizer that the installed transformers builds differently is named before anything is trained."""

import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.data.conftest import CHATML
from tests.data.index.test_prepare import good, recipe_of
from tunesmith.data.check import check_recipe
from tunesmith.data.index.prepare import prepare
from tunesmith.data.tokenization.agreement import missing_comparison, require_agreement
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rebuilt(tmp_path) -> Tokenizer:
    """A tokenizer without a space before the text, of a class that transformers builds with one."""
    backend = Backend(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=[chr(c) for c in range(33, 127)]
    )
    backend.train_from_iterator(["the quick brown fox jumps over the lazy dog, answer yes or no"] * 20, trainer)
    directory = tmp_path / "rebuilt"
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "chat_template": CHATML}
    config = {"tokenizer_class": "LlamaTokenizer", **named}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return Tokenizer.load(directory)


def test_a_tokenizer_that_transformers_rebuilds_is_rejected_with_the_difference(
    rebuilt, own_cache, write_jsonl, tmp_path
):
    recipe = recipe_of([write_jsonl("a.jsonl", [good(1)])])
    with pytest.raises(InputError, match="tokenizes differently") as caught:
        prepare(recipe, rebuilt, recipe_dir=tmp_path, workers=1)
    assert "in transformers" in caught.value.where
    assert "PreTrainedTokenizerFast" in caught.value.remedy
    config = json.loads((rebuilt.directory / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the remedy
    (rebuilt.directory / "tokenizer_config.json").write_text(json.dumps(config))
    assert prepare(recipe, Tokenizer.load(rebuilt.directory), recipe_dir=tmp_path, workers=1).train.num_rows == 1


def test_a_row_that_no_tokenizer_accepts_hides_no_difference(rebuilt, own_cache, write_jsonl, tmp_path):
    path = write_jsonl("a.jsonl", [good(1), {"messages": [{"role": "user", "content": "a \ud800"}]}, good(2)])
    recipe = recipe_of([path], max_rejects=1)
    with pytest.raises(InputError, match="tokenizes differently"):
        prepare(recipe, rebuilt, recipe_dir=tmp_path, workers=1)


def test_equal_tokenizers_are_compared_once(tiny, own_cache, monkeypatch):
    require_agreement(tiny, [("a:1", "text")], adds=False, withheld=False)
    (stored,) = (own_cache / "agreement").iterdir()
    assert json.loads(stored.read_text()) == {"equal": True}
    monkeypatch.setattr("tunesmith.data.tokenization.agreement.REFERENCE", "no.such.module")
    require_agreement(tiny, [("a:1", "another text")], adds=True, withheld=False)
    assert list((own_cache / "agreement").iterdir()) == [stored]


def test_a_tokenizer_that_transformers_cannot_load_is_reported(rebuilt, own_cache, write_jsonl, tmp_path):
    config = json.loads((rebuilt.directory / "tokenizer_config.json").read_text())
    config["padding_side"] = "up"
    (rebuilt.directory / "tokenizer_config.json").write_text(json.dumps(config))
    recipe, tokenizer = recipe_of([write_jsonl("a.jsonl", [good(1)])]), Tokenizer.load(rebuilt.directory)
    expected = "cannot load the tokenizer, so tokens were not compared: "
    for _ in range(2):  # the second time from the cache
        facts = prepare(recipe, tokenizer, recipe_dir=tmp_path, workers=1)
        assert expected in facts.tokenizer_not_compared
    assert any(expected in warning for warning in check_recipe(recipe, tokenizer, recipe_dir=tmp_path).warnings)


def test_a_comparison_that_failed_is_tried_again(tiny, own_cache, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr("tunesmith.data.tokenization.agreement.REFERENCE", "no.such.module")
        require_agreement(tiny, [("a:1", "text")], adds=False, withheld=False)
        assert "the process that loads it failed" in missing_comparison(tiny)
    require_agreement(tiny, [("a:1", "text")], adds=False, withheld=False)
    assert missing_comparison(tiny) is None


def test_rows_that_are_de_identified_are_not_shown(rebuilt, own_cache, monkeypatch):
    monkeypatch.setattr("tunesmith.data.tokenization.agreement.probe", lambda tokenizer: "")
    with pytest.raises(InputError) as caught:
        require_agreement(rebuilt, [("a.jsonl:1", "Jane Doe")], adds=False, withheld=True)
    assert "a.jsonl:1" in caught.value.where
    assert "Jane" not in str(caught.value)
