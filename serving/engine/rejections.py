"""What the API answers where inference rejects a request: texts, codes and parameters as the hosted API has them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tunesmith.errors import InputError, RunFault, TunesmithError
from tunesmith.inference.types import RequestRejected
from tunesmith.serving.engine.protocol import EngineRejected

OTHER_ENGINE = "serve it with --engine vllm"


def as_rejection(rejected: RequestRejected | TunesmithError) -> EngineRejected:
    """Where the API has no words of its own, those of the error."""
    if isinstance(rejected, TunesmithError):
        return EngineRejected(str(rejected))
    answer = _ANSWERS.get(rejected.code)
    return EngineRejected(rejected.message) if answer is None else answer(**rejected.data)


@contextmanager
def engine_rejections() -> Iterator[None]:
    """Raises EngineRejected in place of a RequestRejected of the block."""
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
    what = f"{architecture} cannot be run by the embedded engine"
    return EngineRejected(str(InputError(what, where=str(directory), remedy=f"{OTHER_ENGINE}, if vLLM knows it")))


def _unsupported_attention(module: str) -> EngineRejected:
    what = "this architecture's attention is not known to the embedded engine"
    return EngineRejected(str(RunFault(what, where=module, remedy=OTHER_ENGINE)))


def _unsupported_layers(architecture: str, directory: object) -> EngineRejected:
    what = f"{architecture} does not attend in all of its layers as the embedded engine needs it"
    return EngineRejected(str(RunFault(what, where=str(directory), remedy=OTHER_ENGINE)))


_ANSWERS: dict[str, Callable[..., Any]] = {
    "context_length_exceeded": _too_long,
    "invalid_schema": _invalid_schema,
    "unsupported_model": _unsupported_model,
    "unsupported_attention": _unsupported_attention,
    "unsupported_layers": _unsupported_layers,
    "empty_prompt": lambda: EngineRejected("The prompt is empty: there is nothing to continue."),
    "unknown_token": lambda token, vocabulary: EngineRejected(
        f"Token {token} is not in the model's vocabulary of {vocabulary} tokens."
    ),
    "unsupported_grammar": lambda reason: EngineRejected(f"This model's answers cannot be kept to a form: {reason}"),
    "broken_grammar": lambda reason: EngineRejected(
        f"The answer could not be kept to the form that was asked for: {reason}"
    ),
    "missing_llguidance": lambda: EngineRejected(
        "Answers are kept to a form by llguidance, which is not installed: pip install 'tunesmith[serve]'"
    ),
    "invalid_logits": lambda: EngineRejected(
        "The model's logits are not numbers (NaN): its weights or its adapter are damaged."
    ),
}
