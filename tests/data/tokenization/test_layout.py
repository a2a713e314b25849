"""The fixed text around contents: its turns are where they are located one by one, at a limited cost."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import TEMPLATES
from tunesmith.data.encoders.language_model import prompt_tokens
from tunesmith.data.tokenization import layout as layouts
from tunesmith.data.tokenization.chat_template import ChatTemplate
from tunesmith.data.tokenization.layout import layout_of
from tunesmith.data.tokenization.tokenizer import Tokenizer

ROUND = st.sampled_from(
    [
        ("user", "assistant"),
        ("user", "assistant", "assistant"),
        ("user", "tool", "assistant"),
        ("user", "user", "assistant"),
    ]
)


@dataclass
class Counting:
    """A chat template that counts its renderings."""

    inner: Any
    renderings: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def render(self, *arguments: Any) -> str:
        self.renderings += 1
        return self.inner.render(*arguments)


@pytest.mark.parametrize("name", TEMPLATES)
@given(rounds=st.lists(ROUND, min_size=1, max_size=12), has_system=st.booleans())
@settings(max_examples=20, deadline=None)
def test_turns_taken_over_from_equal_places_are_where_they_are_located(tokenizers, name, rounds, has_system):
    template = tokenizers[name].template
    roles = ("system",) * has_system + tuple(role for each in rounds for role in each)
    located = layout_of(template, roles)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "_MANY_TURNS", 2)
        assert layout_of(template, roles) == located


@pytest.mark.parametrize("name", ["chatml", "llama2", "phi3"])
def test_the_number_of_renderings_is_limited(tokenizers, name):
    counting = Counting(tokenizers[name].template)
    layout = layout_of(counting, ("user", "assistant") * 1000)
    assert layout is not None
    assert len(layout.turns) == 1000
    assert counting.renderings < 6 * (layouts._MANY_TURNS + 2)


def test_a_long_prompt_with_special_tokens_is_rendered_a_few_times(make_tokenizer_directory, monkeypatch):
    """It took a minute, in which the server answered nobody."""
    tokenizer = Tokenizer.load(make_tokenizer_directory(TEMPLATES["chatml"]))
    original, calls = ChatTemplate.render, []

    def render(self: ChatTemplate, *arguments: Any, **options: Any) -> str:
        calls.append(len(arguments[0]))
        return original(self, *arguments, **options)

    monkeypatch.setattr(ChatTemplate, "render", render)
    messages = [{"role": "user", "content": "a <|im_end|> b"}, {"role": "assistant", "content": "fine"}] * 1000
    text = original(tokenizer.template, messages, None, True)
    assert len(prompt_tokens(tokenizer, text, messages, None)) > 4000
    assert len(calls) < 6 * (layouts._MANY_TURNS + 2)
