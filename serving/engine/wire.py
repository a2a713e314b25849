"""JSON serialization of requests and responses between the API and the inference process."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.inference.grammar import Grammar
from tunesmith.inference.types import Chunk, Sampling, Target, TokenLogprob


def target_to_json(target: Target) -> dict[str, Any]:
    return {"base": str(target.base), "adapter": "" if target.adapter is None else str(target.adapter)}


def target_from_json(value: dict[str, Any]) -> Target:
    return Target(Path(value["base"]), Path(value["adapter"]) if value["adapter"] else None)


def sampling_to_json(sampling: Sampling) -> dict[str, Any]:
    grammar = sampling.grammar
    return {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop": sampling.stop,
        "seed": sampling.seed,
        "logprobs": sampling.logprobs,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": sampling.logit_bias,
        "form": None if grammar is None else {"grammar": grammar.lark, "schemas": grammar.schemas},
        **({"shown": sampling.shown_tokens} if sampling.shown_tokens else {}),
    }


def sampling_from_json(value: dict[str, Any]) -> Sampling:
    shared = ("temperature", "top_p", "seed", "logprobs", "presence_penalty", "frequency_penalty")
    return Sampling(
        max_new_tokens=value["max_tokens"],
        stop=tuple(value["stop"]),
        shown_tokens=tuple(value.get("shown", ())),
        logit_bias={int(token): bias for token, bias in value["logit_bias"].items()},  # JSON keys are strings
        grammar=value["form"] and Grammar(value["form"]["grammar"], tuple(map(tuple, value["form"]["schemas"]))),
        **{name: value[name] for name in shared},
    )


def chunk_to_json(chunk: Chunk) -> dict[str, Any]:
    return asdict(chunk)


def chunk_from_json(value: dict[str, Any]) -> Chunk:
    return Chunk(
        **{
            **value,
            "token_ids": tuple(value["token_ids"]),
            "logprobs": tuple(map(logprob_from_json, value["logprobs"])),
        }
    )


def logprob_to_json(logprob: TokenLogprob) -> dict[str, Any]:
    return asdict(logprob)


def logprob_from_json(value: dict[str, Any]) -> TokenLogprob:
    return TokenLogprob(**{**value, "top": tuple((token, text, number) for token, text, number in value["top"])})
