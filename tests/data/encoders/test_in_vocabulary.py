"""A tokenizer with one token more than the embedding has rows: rows that use it are rejected with the remedy."""

import json
import shutil

import pytest

from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.tokenization.tokenizer import Tokenizer

EXTRA = "<|extra|>"


@pytest.fixture
def larger(tiny_llama, tmp_path):
    """The tiny model, with token 384 added to its tokenizer."""
    directory = shutil.copytree(tiny_llama, tmp_path / "model")
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 384, "content": EXTRA, "special": False})
    path.write_text(json.dumps(content))
    return directory


ROWS = {
    "text": lambda text: {"text": text},
    "completion": lambda text: {"prompt": "Hello", "completion": text},
    "chat": lambda text: {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]},
    "preference": lambda text: {"prompt": "Hi", "chosen": "Good.", "rejected": text},
}


@pytest.mark.parametrize("task", ROWS)
def test_only_rows_that_use_the_token_are_rejected(larger, task):
    encoder = make_encoder(Tokenizer.load(larger), EncodingSpec(task, 128))
    good, bad = encoder.encode([ROWS[task]("Good morning."), ROWS[task](f"Good {EXTRA} morning.")])
    assert good.outcome == "kept"
    assert (bad.outcome, bad.code, bad.documents) == ("rejected", "unknown_token", [])
    assert "token 384" in bad.reason
    assert EXTRA in bad.reason
    assert "384 rows" in bad.reason
    assert "resize_token_embeddings(385)" in bad.remedy


def test_nothing_is_rejected_if_the_embedding_is_large_enough(larger, tiny_llama):
    (kept,) = make_encoder(Tokenizer.load(tiny_llama), EncodingSpec("text", 128)).encode([ROWS["text"](EXTRA)])
    assert kept.outcome == "kept"  # characters, not the token
    fingerprint = Tokenizer.load(larger).fingerprint
    config = json.loads((larger / "config.json").read_text())
    (larger / "config.json").write_text(json.dumps(config | {"vocab_size": 385}))
    tokenizer = Tokenizer.load(larger)
    assert tokenizer.fingerprint != fingerprint
    (result,) = make_encoder(tokenizer, EncodingSpec("text", 128)).encode([ROWS["text"](EXTRA + " and more")])
    assert result.outcome == "kept"
