"""What clients read where inference rejects a request: the texts of the API, which do not change with inference's."""

import ast
from pathlib import Path

import pytest

from tunesmith.errors import InputError
from tunesmith.inference.types import RequestRejected, too_long
from tunesmith.serving.engine.protocol import EngineRejected
from tunesmith.serving.engine.rejections import as_rejection, engine_rejections

ROOT = Path(__file__).resolve().parents[3]
LONG = "This model's maximum context length is 10 tokens. However, "
REFUSED = [
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
        RequestRejected("empty_prompt", "..."),
        "The prompt is empty: there is nothing to continue.",
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
        "This model's answers cannot be kept to a form: no bytes",
        None,
        None,
    ),
    (
        RequestRejected("broken_grammar", "...", reason="too large"),
        "The answer could not be kept to the form that was asked for: too large",
        None,
        None,
    ),
    (
        RequestRejected("missing_llguidance", "..."),
        "Answers are kept to a form by llguidance, which is not installed: pip install 'tunesmith[serve]'",
        None,
        None,
    ),
    (
        RequestRejected("invalid_logits", "..."),
        "The model's logits are not numbers (NaN): its weights or its adapter are damaged.",
        None,
        None,
    ),
    (
        RequestRejected("unsupported_model", "...", architecture="BertForMaskedLM", directory=Path("/base")),
        "BertForMaskedLM cannot be run by the embedded engine\n  where:      /base\n"
        "  what to do: serve it with --engine vllm, if vLLM knows it",
        None,
        None,
    ),
    (
        RequestRejected("unsupported_attention", "...", module="Gemma2Attention"),
        "this architecture's attention is not known to the embedded engine\n  where:      Gemma2Attention\n"
        "  what to do: serve it with --engine vllm",
        None,
        None,
    ),
    (
        RequestRejected("unsupported_layers", "...", architecture="Mamba", directory=Path("/base")),
        "Mamba does not attend in all of its layers as the embedded engine needs it\n  where:      /base\n"
        "  what to do: serve it with --engine vllm",
        None,
        None,
    ),
    (RequestRejected("unusable_tokenizer", "no tokenizer.json"), "no tokenizer.json", None, None),
    (RequestRejected("unusable_template", "a role; leave it out"), "a role; leave it out", None, None),
    (
        InputError("it does not fit", where="/a", remedy="merge"),
        "it does not fit\n  where:      /a\n  what to do: merge",
        None,
        None,
    ),
]


@pytest.mark.parametrize(("rejected", "message", "code", "param"), REFUSED)
def test_the_texts_of_the_api(rejected, message, code, param):
    refused = as_rejection(rejected)
    assert (refused.message, refused.code, refused.param) == (message, code, param)


def test_every_code_of_inference_is_listed_here():
    """Found by reading the files, so that a new one does not reach clients unseen."""
    found = set()
    for path in [*(ROOT / "inference").glob("*.py"), ROOT / "serving" / "engine" / "service.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "RequestRejected":
                assert isinstance(node.args[0], ast.Constant)
                found.add(node.args[0].value)
    assert found == {rejected.code for rejected, *_ in REFUSED if isinstance(rejected, RequestRejected)}


def test_a_block_raises_them():
    with pytest.raises(EngineRejected, match="maximum context length is 10 tokens"), engine_rejections():
        raise too_long(10, 12)
