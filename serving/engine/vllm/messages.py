"""Requests and responses of vLLM's `/v1/completions`.

Prompts are sent as token ids, rendered here as in training. The fields are those of
vllm/entrypoints/openai/completion/protocol.py.
"""

from collections.abc import Sequence
from typing import Any

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.types import Chunk, Sampling, TokenLogprob
from tunesmith.serving.engine.protocol import EngineBusy, EngineRejected, EngineUnavailable

Json = dict[str, Any]


def completion_request(model: str, prompt: Sequence[int], sampling: Sampling, limit: int, stops: Sequence[int]) -> Json:
    """limit: maximum number of new tokens. stops: stop token ids. Overrides the model's generation_config.json."""
    request: Json = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": limit,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop": list(sampling.stop),
        "stop_token_ids": list(stops),
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stream": True,
        "return_token_ids": True,
        "spaces_between_special_tokens": False,
    }
    if sampling.shown_tokens:
        request["skip_special_tokens"] = False
    if sampling.logprobs is not None:
        request |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
    if sampling.grammar is not None:
        request["structured_outputs"] = {"grammar": sampling.grammar.lark}
    return request


def logprobs_request(model: str, prompt: Sequence[int], top: int) -> Json:
    """Request for the log-probabilities of a prompt."""
    request: Json = {"model": model, "prompt": list(prompt), "max_tokens": 0, "echo": True, "logprobs": top}
    return {**request, "return_tokens_as_token_ids": True}


class Reader:
    """Converts the events of one completion to chunks. vLLM holds back text that may start a stop string, but not its
    tokens: if log-probabilities are requested, tokens are held back here until their text is output."""

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling):
        self.tokenizer, self.num_logprobs = tokenizer, sampling.logprobs
        self._skips = not sampling.shown_tokens
        self._stops = bool(sampling.stop) and self.num_logprobs is not None
        self._tokens: list[int] = []
        self._waiting: list[tuple[int, TokenLogprob | None, int]] = []
        self._seen = self._shown = 0
        """Characters of all tokens so far, without an incomplete character, and of the text that was output."""

    def add(self, event: Json) -> Chunk | None:
        """Convert an event; None if it has no choices. Raises EngineUnavailable if vLLM aborted the completion."""
        if not event.get("choices"):
            return None
        choice = event["choices"][0]
        finish = choice.get("finish_reason")
        if finish not in (None, "stop", "length"):
            raise EngineUnavailable(f"The inference server aborted the completion ({finish}).")
        tokens = choice.get("token_ids") or []
        logprobs = token_logprobs(choice.get("logprobs"), self.num_logprobs or 0, self.tokenizer)
        by_text = isinstance(choice.get("stop_reason"), str)
        if finish == "stop" and not by_text and tokens and tokens[-1] in self.tokenizer.stop_token_ids:
            tokens, logprobs = tokens[:-1], logprobs[: len(tokens) - 1]
        for number, token in enumerate(tokens):
            self._waiting.append((token, logprobs[number] if logprobs else None, self._seen))
            self._tokens.append(token)
            if self._stops and not (text := self.tokenizer.decode(self._tokens, self._skips)).endswith("�"):
                self._seen = len(text)
        self._shown += len(choice.get("text") or "")
        everything = not self._stops or (finish is not None and not by_text)
        ready = [one for one in self._waiting if everything or one[2] < self._shown]
        self._waiting = self._waiting[len(ready) :]
        return Chunk(
            choice.get("text") or "",
            tuple(token for token, _, _ in ready),
            tuple(logprob for _, logprob, _ in ready if logprob is not None),
            finish,
            len(self._tokens),
        )


def token_logprobs(value: Json | None, top: int, tokenizer: Tokenizer) -> list[TokenLogprob]:
    """Convert the log-probabilities of vLLM, which names tokens `token_id:N`. The first token of a prompt has none and
    is left out."""
    if not value:
        return []
    logprobs = []
    for name, logprob, alternatives in zip(
        value["tokens"], value["token_logprobs"], value["top_logprobs"], strict=True
    ):
        if logprob is None:
            continue
        ranked = sorted((alternatives or {}).items(), key=lambda one: -one[1])[:top]
        top_tokens = tuple((_id(key), tokenizer.token_text(_id(key)), number) for key, number in ranked)
        logprobs.append(TokenLogprob(_id(name), tokenizer.token_text(_id(name)), logprob, top_tokens))
    return logprobs


def _id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def failure(status: int, body: Any) -> Exception:
    """The exception for an error response of vLLM. body: its JSON."""
    error = body.get("error", body) if isinstance(body, dict) else {}
    error = error if isinstance(error, dict) else {"message": str(error)}
    message = str(error.get("message") or "no error message")
    if status in (400, 404, 422):
        code = "context_length_exceeded" if "maximum context length" in message else None
        return EngineRejected(message, code, error.get("param"))
    if status in (401, 403):
        return EngineUnavailable("The inference server rejected the API key (VLLM_API_KEY).")
    if status == 429:
        return EngineBusy("The inference server has too many requests.")
    return EngineUnavailable(f"The inference server failed: {message[:500]}")
