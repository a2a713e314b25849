"""Incremental decoding outputs complete characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.text_stream import TextStream


@pytest.fixture(scope="module")
def tokenizer(tiny_llama) -> Tokenizer:
    return Tokenizer.load(tiny_llama)


@given(text=st.text(max_size=40))
def test_characters_are_not_split(tokenizer, text):
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    for token in tokenizer.encode(text):
        stream.add(token)
        assert text.startswith("".join(pieces))
    assert stream.finish() == text
    assert "".join(pieces) == text


@given(tokens=st.lists(st.integers(3, 383), max_size=40))
def test_streamed_text_equals_the_text_of_all_tokens(tokenizer, tokens):
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    for token in tokens:
        stream.add(token)
    assert stream.finish() == tokenizer.decode(tokens)
    assert "".join(pieces) == tokenizer.decode(tokens)
