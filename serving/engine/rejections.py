"""API errors for requests that inference rejects: messages, codes and parameters as in the hosted API."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tunesmith.errors import InputError, RunFault, TunesmithError
from tunesmith.inference.types import RequestRejected
from tunesmith.serving.engine.protocol import EngineRejected

OTHER_ENGINE = "serve it with --engine vllm"


def as_rejection(rejected: RequestRejected | TunesmithError) -> EngineRejected:
    """Convert an error of inference. Errors without an API message keep their own."""
    if isinstance(rejected, TunesmithError):
        return EngineRejected(str(rejected))
    build = _ERRORS.get(rejected.code)
    if build is not None:
        return build(**rejected.data)
    if "parameter" in rejected.data:
        return EngineRejected(rejected.message, "unsupported_value", str(rejected.data["parameter"]))
    return EngineRejected(rejected.message)


@contextmanager
def engine_rejections() -> Iterator[None]:
    """Convert a RequestRejected raised in the block to EngineRejected."""
    try:
        yield
    except RequestRejected as rejected:
        raise as_rejection(rejected) from rejected


def _too_long(context: int, prompt_tokens: int, completion_tokens: int | None, at_least: bool) -> EngineRejected:
    limit = f"This model's maximum context length is {context} tokens. However, "
    if completion_tokens is None:
        counted = f"more than {prompt_tokens}" if at_least else prompt_tokens
        message = f"{limit}your prompt has {counted} tokens. Please reduce its length."
    else:
        message = (
            f"{limit}you requested {prompt_tokens + completion_tokens} tokens ({prompt_tokens} in the prompt, "
            f"{completion_tokens} in the completion). Please reduce the length of the prompt or completion."
        )
    return EngineRejected(message, "context_length_exceeded")


def _invalid_schema(parameter: str | None, schema: str | None, reason: str) -> EngineRejected:
    code = "invalid_function_parameters" if parameter == "tools" and schema is not None else None
    return EngineRejected(f"Invalid schema for {schema or parameter}: {reason}.", code, parameter)


def _unsupported_model(architecture: str, directory: object) -> EngineRejected:
    what = f"the embedded engine does not support {architecture}"
    return EngineRejected(str(InputError(what, where=str(directory), remedy=f"{OTHER_ENGINE}, if vLLM supports it")))


def _unsupported_attention(module: str, reason: str = "") -> EngineRejected:
    what = "the embedded engine does not support the attention of this architecture"
    what = f"{what}: {reason}" if reason else what
    return EngineRejected(str(RunFault(what, where=module, remedy=OTHER_ENGINE)))


def _unsupported_layers(architecture: str, directory: object) -> EngineRejected:
    what = f"the embedded engine does not support the attention of some layers of {architecture}"
    return EngineRejected(str(RunFault(what, where=str(directory), remedy=OTHER_ENGINE)))


_ERRORS: dict[str, Callable[..., Any]] = {
    "context_length_exceeded": _too_long,
    "invalid_schema": _invalid_schema,
    "unsupported_model": _unsupported_model,
    "unsupported_attention": _unsupported_attention,
    "unsupported_layers": _unsupported_layers,
    "empty_prompt": lambda: EngineRejected("The prompt is empty."),
    "unknown_token": lambda token, vocabulary: EngineRejected(
        f"Token {token} is not in the model's vocabulary of {vocabulary} tokens."
    ),
    "unsupported_grammar": lambda reason: EngineRejected(
        f"Structured outputs are not supported for this model: {reason}"
    ),
    "broken_grammar": lambda reason: EngineRejected(f"The response could not follow the requested format: {reason}"),
    "missing_llguidance": lambda: EngineRejected(
        "Structured outputs require llguidance, which is not installed: pip install 'tunesmith[serve]'"
    ),
    "invalid_logits": lambda: EngineRejected(
        "The model's logits are NaN: the weights of the model or the adapter are corrupt."
    ),
}
