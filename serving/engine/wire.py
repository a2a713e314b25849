"""The words of the protocol as JSON, both ways."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.inference.grammar import Form
from tunesmith.inference.types import Piece, Sampling, Target, TokenLogprob


def target_to_json(target: Target) -> dict[str, Any]:
    return {"base": str(target.base), "adapter": "" if target.adapter is None else str(target.adapter)}


def target_from_json(value: dict[str, Any]) -> Target:
    return Target(Path(value["base"]), Path(value["adapter"]) if value["adapter"] else None)


def sampling_to_json(sampling: Sampling) -> dict[str, Any]:
    return asdict(sampling)


def sampling_from_json(value: dict[str, Any]) -> Sampling:
    biases = {int(token): bias for token, bias in value["logit_bias"].items()}  # JSON's keys are text
    form = value["form"] and Form(value["form"]["grammar"], tuple(map(tuple, value["form"]["schemas"])))
    return Sampling(**{**value, "stop": tuple(value["stop"]), "logit_bias": biases, "form": form})


def piece_to_json(piece: Piece) -> dict[str, Any]:
    return asdict(piece)


def piece_from_json(value: dict[str, Any]) -> Piece:
    return Piece(
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
