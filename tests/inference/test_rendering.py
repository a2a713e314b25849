"""Prompts of requests: what the chat template omits is rejected by name, and a printed date is the current one."""

from datetime import date

import pytest

from tests.data.conftest import make_tokenizer_directory  # noqa: F401
from tests.data.tokenization.families import CHATML, LLAMA_3_2, PHI_3
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.rendering import render_prompt, tokenizer_of
from tunesmith.inference.types import RequestRejected
from tunesmith.serving.engine.rejections import as_rejection

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Answer as a pirate."}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("source", "messages", "tools", "place", "parameter"),
    [
        (PHI_3, [SYSTEM, USER], None, "messages[0].content (system)", "messages"),
        (CHATML, [USER], [TOOL], "tools", "tools"),
        (None, [USER], [TOOL], "tools", "tools"),
    ],
)
def test_what_the_template_omits_is_rejected(
    make_tokenizer_directory,  # noqa: F811
    source,
    messages,
    tools,
    place,
    parameter,
):
    directory = make_tokenizer_directory(source)
    with pytest.raises(RequestRejected) as raised:
        render_prompt(directory, messages, tools)
    assert place in raised.value.message
    rejection = as_rejection(raised.value)
    assert (rejection.message, rejection.code, rejection.param) == (
        raised.value.message,
        "unsupported_value",
        parameter,
    )
    assert render_prompt(directory, [USER], None)


def test_a_tokenizer_in_memory_prints_the_date_of_the_request(make_tokenizer_directory):  # noqa: F811
    directory, then = make_tokenizer_directory(LLAMA_3_2), date(2024, 2, 29)
    past = render_prompt(directory, [USER], None, today=then)
    assert "29 Feb 2024" in Tokenizer.load(directory).decode(past)
    assert tokenizer_of(directory).template.today == date.today().isoformat()
    assert tokenizer_of(directory) is tokenizer_of(directory)
    assert render_prompt(directory, [USER], None) != past
