"""API errors for requests that inference rejects. They do not depend on the messages of inference."""

import ast
from pathlib import Path

import pytest

from tunesmith.errors import InputError
from tunesmith.inference.types import RequestRejected, too_long
from tunesmith.serving.engine.protocol import EngineRejected
from tunesmith.serving.engine.rejections import as_rejection, engine_rejections

ROOT = Path(__file__).resolve().parents[3]
LONG = "This model's maximum context length is 10 tokens. However, "
REJECTIONS = [
    (
        too_long(10, 8, 4),
        f"{LONG}you requested 12 tokens (8 in the prompt, 4 in the completion). Please reduce the length of the "
        "prompt or completion.",
        "context_length_exceeded",
        None,
    ),
    (
        too_long(10, 12, 0),
        f"{LONG}you requested 12 tokens (12 in the prompt, 0 in the completion). Please reduce the length of the "
        "prompt or completion.",
        "context_length_exceeded",
        None,
    ),
    (
        too_long(10, 12),
        f"{LONG}your prompt has 12 tokens. Please reduce its length.",
        "context_length_exceeded",
        None,
    ),
    (
        too_long(10, 12, at_least=True),
        f"{LONG}your prompt has more than 12 tokens. Please reduce its length.",
        "context_length_exceeded",
        None,
    ),
    (
        RequestRejected("template_variable", "the chat template does not read it", parameter="chat_template_kwargs.x"),
        "the chat template does not read it",
        "unsupported_value",
        "chat_template_kwargs.x",
    ),
    (
        RequestRejected("empty_prompt", "..."),
        "The prompt is empty.",
        None,
        None,
    ),
    (
        RequestRejected("unknown_token", "...", token=-1, vocabulary=384),
        "Token -1 is not in the model's vocabulary of 384 tokens.",
        None,
        None,
    ),
    (
        RequestRejected("invalid_schema", "...", parameter="tools", schema="function 'f'", reason="no such type"),
        "Invalid schema for function 'f': no such type.",
        "invalid_function_parameters",
        "tools",
    ),
    (
        RequestRejected("invalid_schema", "...", parameter="response_format", schema="response_format", reason="no"),
        "Invalid schema for response_format: no.",
        None,
        "response_format",
    ),
    (
        RequestRejected("invalid_schema", "...", parameter="tools", schema=None, reason="too large"),
        "Invalid schema for tools: too large.",
        None,
        "tools",
    ),
    (
        RequestRejected("unsupported_grammar", "...", reason="no bytes"),
        "Structured outputs are not supported for this model: no bytes",
        None,
        None,
    ),
    (
        RequestRejected("broken_grammar", "...", reason="too large"),
        "The response could not follow the requested format: too large",
        None,
        None,
    ),
    (
        RequestRejected("missing_llguidance", "..."),
        "Structured outputs require llguidance, which is not installed: pip install 'tunesmith[serve]'",
        None,
        None,
    ),
    (
        RequestRejected("invalid_logits", "..."),
        "The model's logits are NaN: the weights of the model or the adapter are corrupt.",
        None,
        None,
    ),
    (
        RequestRejected("unsupported_model", "...", architecture="BertForMaskedLM", directory=Path("/base")),
        "the embedded engine does not support BertForMaskedLM\n  where:      /base\n"
        "  what to do: serve it with --engine vllm, if vLLM supports it",
        None,
        None,
    ),
    (
        RequestRejected("unsupported_attention", "...", module="T5Attention", reason="its mask is not known"),
        "the embedded engine does not support the attention of this architecture: its mask is not known\n"
        "  where:      T5Attention\n  what to do: serve it with --engine vllm",
        None,
        None,
    ),
    (
        RequestRejected("unsupported_layers", "...", architecture="Mamba", directory=Path("/base")),
        "the embedded engine does not support the attention of some layers of Mamba\n  where:      /base\n"
        "  what to do: serve it with --engine vllm",
        None,
        None,
    ),
    (RequestRejected("unusable_tokenizer", "no tokenizer.json"), "no tokenizer.json", None, None),
    (RequestRejected("unusable_template", "a role; leave it out"), "a role; leave it out", None, None),
    (RequestRejected("special_token", "an end token; remove it"), "an end token; remove it", None, None),
    (
        InputError("it does not fit", where="/a", remedy="merge"),
        "it does not fit\n  where:      /a\n  what to do: merge",
        None,
        None,
    ),
]


@pytest.mark.parametrize(("rejected", "message", "code", "param"), REJECTIONS)
def test_messages_codes_and_parameters_of_the_api(rejected, message, code, param):
    error = as_rejection(rejected)
    assert (error.message, error.code, error.param) == (message, code, param)


def test_every_rejection_code_is_covered():
    """Collects the codes from the source files, so that a new code requires a test case."""
    codes = set()
    for path in [*(ROOT / "inference").glob("*.py"), ROOT / "serving" / "engine" / "service.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "RequestRejected":
                assert isinstance(node.args[0], ast.Constant)
                codes.add(node.args[0].value)
    assert codes == {rejected.code for rejected, *_ in REJECTIONS if isinstance(rejected, RequestRejected)}


def test_the_context_manager_converts_rejections():
    with pytest.raises(EngineRejected, match="maximum context length is 10 tokens"), engine_rejections():
        raise too_long(10, 12)
