"""Special tokens that only configuration files declare have the ids and flags that transformers gives them."""

import json
from pathlib import Path

import pytest

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError

TEXT = "a<one> b<two>  c</s>d<pad>e <three>f"
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
FLAGGED = {"content": "<one>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}

FILES = {
    "additional": {CONFIG: {"additional_special_tokens": ["<one>", "<two>"]}},
    "extra as a list": {CONFIG: {"extra_special_tokens": ["<one>", "<two>"], "pad_token": "<pad>"}},
    "extra by name": {CONFIG: {"extra_special_tokens": {"image_token": "<one>"}, "audio_token": "<two>"}},
    "objects": {CONFIG: {"additional_special_tokens": [{"__type": "AddedToken", **FLAGGED}, "<two>"]}},
    "in the map": {MAP: {"additional_special_tokens": ["<one>", "<two>"], "pad_token": "<pad>"}},
    "in both": {CONFIG: {"additional_special_tokens": ["<one>"]}, MAP: {"additional_special_tokens": ["<two>"]}},
    "map over configuration": {CONFIG: {"pad_token": "<one>"}, MAP: {"pad_token": {**FLAGGED, "content": "<pad>"}}},
    "added tokens": {ADDED: {"<one>": 600, "<two>": 601}},
    "added and special": {
        ADDED: {"<two>": 601, "<one>": 600},
        CONFIG: {"additional_special_tokens": ["<two>", "<three>"]},
    },
    "decoder": {
        CONFIG: {"added_tokens_decoder": {"600": {**FLAGGED, "special": True}, "601": {"content": "<two>"}}},
        MAP: {"pad_token": "<pad>"},
        ADDED: {"<three>": 602},
    },
}


def directory_with(make_tokenizer_directory, files: dict[str, dict]) -> Path:
    directory = make_tokenizer_directory(None)
    for name, content in files.items():
        path = directory / name
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(before | content))
    return directory


@pytest.mark.parametrize("case", FILES)
def test_declared_tokens_are_those_of_transformers(make_tokenizer_directory, case):
    from transformers import AutoTokenizer

    directory = directory_with(make_tokenizer_directory, FILES[case])
    own, oracle = Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)
    assert own.encode(TEXT) == oracle(TEXT, add_special_tokens=False)["input_ids"]
    assert own.backend.get_added_tokens_decoder() == oracle.added_tokens_decoder
    assert own.pad_token_id == oracle.pad_token_id
    assert len(own.encode("<one>")) == 1 or case == "map over configuration" or "one" not in json.dumps(FILES[case])


@pytest.mark.parametrize(
    "files",
    [
        {CONFIG: {"added_tokens_decoder": {"600": {"content": ["no text"]}}}},
        {CONFIG: {"added_tokens_decoder": {"600": {}}}},
        {CONFIG: {"added_tokens_decoder": {"six": {"content": "<one>"}}}},
        {CONFIG: {"added_tokens_decoder": ["<one>"]}},
        {ADDED: {"<one>": "six"}},
        {ADDED: {"<one>": [600]}},
    ],
)
def test_damaged_declarations_are_errors_that_name_the_files(make_tokenizer_directory, files):
    directory = directory_with(make_tokenizer_directory, files)
    with pytest.raises(InputError, match="the added tokens of the model cannot be read") as caught:
        Tokenizer.load(directory)
    assert str(directory) in caught.value.where
