"""Tokens added to a tokenizer: recognized as in transformers, and refused if they cannot be."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import make_tokenizer
from tunesmith.configs.sections.model import NewToken
from tunesmith.data.tokenization.new_tokens import extended_tokenizer
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError

TEXT = "a <tool>x</tool><fact> b <|im_end|>"


@pytest.fixture
def directory(tmp_path) -> Path:
    make_tokenizer(tmp_path / "base")
    return tmp_path / "base"


def written(directory: Path, tokens: list[NewToken], num_embeddings: int = 384) -> tuple[Path, list[int]]:
    """A copy of the tokenizer with the tokens, and their ids."""
    extended = extended_tokenizer(directory, tokens, num_embeddings)
    target = directory.with_name("extended")
    shutil.copytree(directory, target)
    for name, content in extended.files.items():
        (target / name).write_text(json.dumps(content))
    return target, extended.ids


def listing(*texts: str) -> list[NewToken]:
    return [NewToken(token=text) for text in texts]


def test_new_tokens_are_single_tokens_here_and_in_transformers(directory):
    from transformers import AutoTokenizer

    before = Tokenizer.load(directory)
    target, ids = written(directory, [*listing("<tool>", "</tool>"), NewToken(token="<fact>", special=True)])
    assert ids == [384, 385, 386]
    own, reference = Tokenizer.load(target), AutoTokenizer.from_pretrained(target)
    tokens = own.encode(TEXT)
    assert [token for token in tokens if token >= 384] == ids
    assert reference(TEXT)["input_ids"] == tokens
    assert own.decode(tokens) == reference.decode(tokens, skip_special_tokens=True) == "a <tool>x</tool> b "
    assert own.fingerprint != before.fingerprint
    assert own.encode("A row without them.") == before.encode("A row without them.")


def test_a_special_token_in_a_users_text_is_text_and_an_ordinary_one_is_a_token(directory):
    target, (ordinary, special) = written(directory, [*listing("<tool>"), NewToken(token="<fact>", special=True)])
    tokens = Tokenizer.load(target).encode_content("<tool> <fact>")
    assert ordinary in tokens
    assert special not in tokens


def test_list_of_added_tokens_in_the_configuration_is_extended(directory):
    from transformers import AutoTokenizer

    path = directory / "tokenizer_config.json"
    entry = {"content": "<|endoftext|>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}
    path.write_text(json.dumps({**json.loads(path.read_text()), "added_tokens_decoder": {"0": entry}}))
    target, ids = written(directory, listing("<tool>"))
    decoder = json.loads((target / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert decoder["384"]["content"] == "<tool>"
    assert decoder["0"] == entry
    assert AutoTokenizer.from_pretrained(target)("x<tool>")["input_ids"][-1:] == ids


def test_description_is_tokenized_without_the_new_tokens(directory):
    tokens = [NewToken(token="<tool>", description="a <tool>"), NewToken(token="<fact>")]
    extended = extended_tokenizer(directory, tokens, 384)
    assert extended.described == {384: Tokenizer.load(directory).encode("a <tool>")}
    assert (extended.num_known, extended.num_ids) == (384, 386)


def test_token_that_the_tokenizer_has_and_the_embedding_lacks_may_be_listed(directory):
    extended = extended_tokenizer(directory, listing("<|im_end|>", "<new>"), num_embeddings=2)
    assert extended.ids == [2, 384]


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        (["<a>", ""], r"empty or only spaces.*add_tokens\[1\]"),
        ([" \n"], "empty or only spaces"),
        (["<a>", "<b>", "<a>"], r"listed twice.*add_tokens\[2\]"),
        (["a"], "already in the vocabulary, as token"),
        (["<|im_end|>"], "already in the vocabulary, as token 2"),
        (["im_start"], r"part of the control token '<\|im_start\|>'"),
        (["<|im_end|>!"], r"part of the control token '<\|im_end\|>'"),
    ],
)
def test_token_that_cannot_be_added_is_an_error_with_its_place(directory, texts, what):
    with pytest.raises(InputError, match=f"(?s){what}"):
        extended_tokenizer(directory, listing(*texts), 384)


def test_description_with_a_token_that_has_no_embedding_is_an_error(directory):
    with pytest.raises(InputError, match="no embedding for"):
        extended_tokenizer(directory, [NewToken(token="<a>", description="words of a licence")], 3)
