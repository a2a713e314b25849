"""What is large and of no use is refused before it costs memory or time."""

import pytest
from pydantic import ValidationError

from tunesmith.inference import rendering
from tunesmith.inference.types import Target
from tunesmith.serving.engine.protocol import EngineRejected
from tunesmith.serving.engine.rejections import engine_rejections
from tunesmith.serving.errors import ApiError
from tunesmith.serving.routes.chat import ChatRequest
from tunesmith.serving.routes.completions import CompletionRequest

MANY = 50_000
CHAT = {"model": "m", "messages": [{"role": "user", "content": "q"}]}


@pytest.mark.parametrize(
    ("form", "asked"),
    [
        (CompletionRequest, {"model": "m", "prompt": [-1] * MANY}),
        (CompletionRequest, {"model": "m", "prompt": [[-1] * MANY]}),
        (ChatRequest, {**CHAT, "modalities": [1] * MANY}),
        (ChatRequest, {**CHAT, "messages": [1] * MANY}),
    ],
)
def test_of_many_faults_of_a_kind_the_first_are_told(form, asked):
    with pytest.raises(ValidationError) as raised:
        form.model_validate(asked)
    assert raised.value.error_count() < 10


def test_of_many_biases_the_first_that_is_wrong_is_told():
    for number, param in ((10_000, "logit_bias.2"), (MANY, "logit_bias")):
        wrong = {str(n + 2): 101 for n in range(number)}
        asked = ChatRequest.model_validate({**CHAT, "logit_bias": {"1": 5, **wrong}})
        with pytest.raises(ApiError) as raised:
            asked.sampling(0, max_new_tokens=None, logprobs=None)
        assert raised.value.param == param
    for bias in ("5", True, float("nan"), 10**400, None):
        with pytest.raises(ApiError):
            ChatRequest.model_validate({**CHAT, "logit_bias": {"1": bias}}).sampling(
                0, max_new_tokens=None, logprobs=None
            )
    asked = ChatRequest.model_validate({**CHAT, "logit_bias": {"1": 5, "2": -0.5}})
    assert asked.sampling(0, max_new_tokens=None, logprobs=None).logit_bias == {1: 5.0, 2: -0.5}


def test_a_prompt_far_beyond_the_context_is_refused_by_its_beginning(tiny_llama):
    """All of it would take some 300 bytes of memory a character, in the process that answers everybody."""
    context = rendering.context_of(tiny_llama)
    assert context == 2048
    text = "What about my invoice? " * 8_000
    for ask in (
        lambda: rendering.tokenize(tiny_llama, text, context),
        lambda: rendering.render_target(Target(tiny_llama), [{"role": "user", "content": text}], None),
    ):
        with (
            pytest.raises(EngineRejected, match="maximum context length is 2048 tokens") as raised,
            engine_rejections(),
        ):
            ask()
        assert raised.value.code == "context_length_exceeded"
        counted = int(str(raised.value).split("more than ")[1].split()[0])
        assert context < counted <= rendering.CHUNK
    assert rendering.tokenize(tiny_llama, text, 1 << 20) == rendering.tokenize(tiny_llama, text)
    with pytest.raises(EngineRejected, match="2049 tokens"), engine_rejections():
        rendering.require_room(2049, Target(tiny_llama))
    rendering.require_room(2048, Target(tiny_llama))


def test_a_base_that_tells_no_context_has_the_engines(tmp_path):
    assert rendering.context_of(tmp_path) == rendering.MAX_CONTEXT
    (tmp_path / "told").mkdir()
    (tmp_path / "told" / "config.json").write_text("[]")
    assert rendering.context_of(tmp_path / "told") == rendering.MAX_CONTEXT
