"""Large invalid requests are rejected before they cost memory or time."""

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
    ("model", "body"),
    [
        (CompletionRequest, {"model": "m", "prompt": [-1] * MANY}),
        (CompletionRequest, {"model": "m", "prompt": [[-1] * MANY]}),
        (ChatRequest, {**CHAT, "modalities": [1] * MANY}),
        (ChatRequest, {**CHAT, "messages": [1] * MANY}),
    ],
)
def test_only_the_first_validation_errors_are_reported(model, body):
    with pytest.raises(ValidationError) as raised:
        model.model_validate(body)
    assert raised.value.error_count() < 10


def test_only_the_first_invalid_bias_is_reported():
    for number, param in ((10_000, "logit_bias.2"), (MANY, "logit_bias")):
        invalid = {str(n + 2): 101 for n in range(number)}
        request = ChatRequest.model_validate({**CHAT, "logit_bias": {"1": 5, **invalid}})
        with pytest.raises(ApiError) as raised:
            request.sampling(0, max_new_tokens=None, logprobs=None)
        assert raised.value.param == param
    for bias in ("5", True, float("nan"), 10**400, None):
        with pytest.raises(ApiError):
            ChatRequest.model_validate({**CHAT, "logit_bias": {"1": bias}}).sampling(
                0, max_new_tokens=None, logprobs=None
            )
    request = ChatRequest.model_validate({**CHAT, "logit_bias": {"1": 5, "2": -0.5}})
    assert request.sampling(0, max_new_tokens=None, logprobs=None).logit_bias == {1: 5.0, 2: -0.5}


def test_a_prompt_far_beyond_the_context_is_rejected_early(tiny_llama):
    """Tokenizing all of it would take about 300 bytes of memory per character in the API process."""
    context = rendering.context_of(tiny_llama)
    assert context == 2048
    text = "What about my invoice? " * 8_000
    for call in (
        lambda: rendering.tokenize(tiny_llama, text, context),
        lambda: rendering.render_target(Target(tiny_llama), [{"role": "user", "content": text}], None),
    ):
        with (
            pytest.raises(EngineRejected, match="maximum context length is 2048 tokens") as raised,
            engine_rejections(),
        ):
            call()
        assert raised.value.code == "context_length_exceeded"
        counted = int(str(raised.value).split("more than ")[1].split()[0])
        assert context < counted <= rendering.CHUNK
    assert rendering.tokenize(tiny_llama, text, 1 << 20) == rendering.tokenize(tiny_llama, text)
    with pytest.raises(EngineRejected, match="2049 tokens"), engine_rejections():
        rendering.require_room(2049, Target(tiny_llama))
    rendering.require_room(2048, Target(tiny_llama))


def test_a_base_without_a_context_length_has_the_engine_limit(tmp_path):
    assert rendering.context_of(tmp_path) == rendering.MAX_CONTEXT
    (tmp_path / "invalid").mkdir()
    (tmp_path / "invalid" / "config.json").write_text("[]")
    assert rendering.context_of(tmp_path / "invalid") == rendering.MAX_CONTEXT
