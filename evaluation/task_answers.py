"""Sample answers by task, before and after training: the items of `answers` events."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.evaluation.answers import Prompt, answer, prompt_at, sample_prompts, spread
from tunesmith.evaluation.classes import named
from tunesmith.evaluation.kto import good_answers
from tunesmith.evaluation.score import device_of
from tunesmith.inference.generate import generate_target
from tunesmith.inference.types import Sampling
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.classification import ClassificationLoss
from tunesmith.modeling.losses.sequence import SequenceLoss
from tunesmith.modeling.mode import evaluating

Items = list[dict[str, Any]]


@dataclass(frozen=True)
class AnswerRequest:
    """Request for answers to `count` rows of the index. agree: as in `generate`."""

    tokenizer: Tokenizer
    index: TokenIndex
    count: int
    max_new_tokens: int
    agree: Callable[[int], int] | None

    @property
    def documents(self) -> list[int]:
        numbers = zip(spread(self.index.num_documents), range(self.count), strict=False)
        return sorted(number for number, _ in numbers)


def task_answers(
    task: str,
    loss: CausalLoss,
    tokenizer: Tokenizer,
    index: TokenIndex,
    count: int,
    *,
    max_new_tokens: int,
    agree: Callable[[int], int] | None = None,
) -> Items:
    """Return `count` items {row, prompt, reference, answer, stopped} for rows spread over the index, deterministically.

    task: task of the recipe. loss: its loss module. The answer of a classifier is its decision. agree: as in
    `generate`.
    """
    return ANSWERS[task](loss, AnswerRequest(tokenizer, index, count, max_new_tokens, agree))


def _continued(loss: CausalLoss, request: AnswerRequest, *, better_of_pairs: bool = False) -> Items:
    prompts = sample_prompts(request.index, request.tokenizer, request.count, better_of_pairs=better_of_pairs)
    return _answered(loss, request, prompts)


def _continued_good(loss: CausalLoss, request: AnswerRequest) -> Items:
    """Answer the prompts of good answers only: a bad answer is not a reference."""
    good = good_answers(request.index).nonzero()[0]
    numbers = [int(good[position]) for position, _ in zip(spread(len(good)), range(request.count), strict=False)]
    return _answered(loss, request, [prompt_at(request.index, n, request.tokenizer) for n in sorted(numbers)])


def _answered(loss: CausalLoss, request: AnswerRequest, prompts: list[Prompt]) -> Items:
    return answer(
        loss.model,
        request.tokenizer,
        prompts,
        max_new_tokens=request.max_new_tokens,
        compute_dtype=loss.compute_dtype,
        agree=request.agree,
    )


def _classified(loss: ClassificationLoss, request: AnswerRequest) -> Items:
    return [_label(loss, request.tokenizer, request.index, number) for number in request.documents]


def _translated(loss: SequenceLoss, request: AnswerRequest) -> Items:
    return [_written(loss, request, number) for number in request.documents]


def _label(loss: ClassificationLoss, tokenizer: Tokenizer, index: TokenIndex, number: int) -> dict[str, Any]:
    sample = index.document(number)
    count = loss.labels.num_targets
    tokens = sample.tokens[:-count].astype(np.int64)
    device = device_of(loss)
    with evaluating(loss), torch.no_grad():
        positions_t = torch.arange(len(tokens), device=device)
        logits_1C = loss.logits(torch.from_numpy(tokens).to(device), positions_t, [len(tokens)])
    single = loss.labels.kind == "single_label"
    decided = logits_1C.argmax(-1) if single else (logits_1C[0] > 0).long()
    names = [
        named(targets, loss.labels) for targets in (sample.tokens[-count:].astype(np.int64), decided.cpu().numpy())
    ]
    reference, decision = (", ".join(name) if isinstance(name, list) else name for name in names)
    text = tokenizer.decode(tokens.tolist(), skip_special_tokens=True).strip()
    return {"row": sample.rows[0], "prompt": text, "reference": reference, "answer": decision, "stopped": True}


def _written(loss: SequenceLoss, request: AnswerRequest, number: int) -> dict[str, Any]:
    tokenizer, sample = request.tokenizer, request.index.document(number)
    first = int(np.flatnonzero(sample.supervised)[0])
    source = sample.tokens[:first].tolist()
    sampling = Sampling(request.max_new_tokens)
    output = generate_target(loss.model, tokenizer, source, sampling, agree=request.agree)  # type: ignore[arg-type]
    texts = (source, sample.tokens[first:].tolist(), output.tokens)
    prompt, reference, text = (tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in texts)
    return {"row": sample.rows[0], "prompt": prompt, "reference": reference, "answer": text, "stopped": output.stopped}


ANSWERS: dict[str, Callable[[Any, AnswerRequest], Items]] = {
    "chat": _continued,
    "completion": _continued,
    "text": _continued,
    "classification": _classified,
    "seq2seq": _translated,
    "preference": partial(_continued, better_of_pairs=True),
    "kto": _continued_good,
}
"""By task. The argument is the loss module of the task (modeling.losses.task_loss)."""
