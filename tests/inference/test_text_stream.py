"""Text of a growing list of tokens: characters are given out whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.text_stream import TextStream


@pytest.fixture(scope="module")
def tokenizer(tiny_llama) -> Tokenizer:
    return Tokenizer.load(tiny_llama)


@given(text=st.text(max_size=40))
def test_characters_are_given_out_whole(tokenizer, text):
    given_out: list[str] = []
    stream = TextStream(tokenizer, given_out.append)
    for token in tokenizer.encode(text):
        stream.add(token)
        assert text.startswith("".join(given_out))
    assert stream.finish() == text
    assert "".join(given_out) == text


@given(tokens=st.lists(st.integers(3, 383), max_size=40))
def test_any_tokens_give_the_text_that_they_have_as_a_whole(tokenizer, tokens):
    given_out: list[str] = []
    stream = TextStream(tokenizer, given_out.append)
    for token in tokens:
        stream.add(token)
    assert stream.finish() == tokenizer.decode(tokens)
    assert "".join(given_out) == tokenizer.decode(tokens)
