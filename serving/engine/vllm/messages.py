"""The protocol's words as vLLM's `/v1/completions` has them, both ways.

Prompts go as token ids, rendered here, so that vLLM serves what was trained. The fields are those of
vllm/entrypoints/openai/completion/protocol.py.
"""

from collections.abc import Sequence
from typing import Any

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.types import Chunk, Sampling, TokenLogprob
from tunesmith.serving.engine.protocol import EngineBusy, EngineRejected, EngineUnavailable

Json = dict[str, Any]


def completion_request(model: str, prompt: Sequence[int], sampling: Sampling, limit: int, stops: Sequence[int]) -> Json:
    """limit: tokens at most. stops: tokens that end an answer. What the model's generation_config.json says is set
    aside: an answer is drawn as the request asks."""
    asked: Json = {
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
    if sampling.logprobs is not None:
        asked |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
    if sampling.grammar is not None:
        asked["structured_outputs"] = {"grammar": sampling.grammar.lark}
    return asked


def reading_request(model: str, prompt: Sequence[int], top: int) -> Json:
    """For the log-probabilities of a prompt."""
    asked: Json = {"model": model, "prompt": list(prompt), "max_tokens": 0, "echo": True, "logprobs": top}
    return {**asked, "return_tokens_as_token_ids": True}


class Reader:
    """vLLM's events of one answer as chunks. vLLM holds text back that may begin a stop string, and not its tokens:
    where their log-probabilities are told, they wait here until their text is shown."""

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling):
        self.tokenizer, self.told = tokenizer, sampling.logprobs
        self._stops = bool(sampling.stop) and self.told is not None
        self._tokens: list[int] = []
        self._waiting: list[tuple[int, TokenLogprob | None, int]] = []
        self._seen = self._shown = 0
        """Characters of all tokens so far, without a character that is half there; and of what was shown."""

    def add(self, event: Json) -> Chunk | None:
        """Raises EngineUnavailable where vLLM gave the answer up."""
        if not event.get("choices"):
            return None
        choice = event["choices"][0]
        finish = choice.get("finish_reason")
        if finish not in (None, "stop", "length"):
            raise EngineUnavailable(f"The inference server gave the answer up ({finish}).")
        tokens = choice.get("token_ids") or []
        logprobs = token_logprobs(choice.get("logprobs"), self.told or 0, self.tokenizer)
        by_text = isinstance(choice.get("stop_reason"), str)
        if finish == "stop" and not by_text and tokens and tokens[-1] in self.tokenizer.stop_token_ids:
            tokens, logprobs = tokens[:-1], logprobs[: len(tokens) - 1]
        for number, token in enumerate(tokens):
            self._waiting.append((token, logprobs[number] if logprobs else None, self._seen))
            self._tokens.append(token)
            if self._stops and not (text := self.tokenizer.decode(self._tokens)).endswith("�"):
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
    """What vLLM tells of tokens, which it names `token_id:N`; a prompt's first, of which nothing is known, is left
    out."""
    if not value:
        return []
    told = []
    for name, logprob, likeliest in zip(value["tokens"], value["token_logprobs"], value["top_logprobs"], strict=True):
        if logprob is None:
            continue
        ranked = sorted((likeliest or {}).items(), key=lambda one: -one[1])[:top]
        alternatives = tuple((_id(key), tokenizer.token_text(_id(key)), number) for key, number in ranked)
        told.append(TokenLogprob(_id(name), tokenizer.token_text(_id(name)), logprob, alternatives))
    return told


def _id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def failure(status: int, body: Any) -> Exception:
    """What vLLM's answer means here. body: its JSON, or None where it sent none."""
    said = body.get("error", body) if isinstance(body, dict) else {}
    said = said if isinstance(said, dict) else {"message": str(said)}
    words = str(said.get("message") or "it said nothing")
    if status in (400, 404, 422):
        code = "context_length_exceeded" if "maximum context length" in words else None
        return EngineRejected(words, code, said.get("param"))
    if status in (401, 403):
        return EngineUnavailable("The inference server does not take this server's key (VLLM_API_KEY).")
    if status == 429:
        return EngineBusy("The inference server has too many requests.")
    return EngineUnavailable(f"The inference server failed: {words[:500]}")
