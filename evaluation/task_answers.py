"""What a model of each task answers before and after training, for people to look at: the items of `answers` events."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.evaluation.answers import answer, sample_prompts, spread
from tunesmith.evaluation.classes import named
from tunesmith.evaluation.score import device_of
from tunesmith.inference.generate import generate_target
from tunesmith.inference.types import Sampling
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.classification import ClassificationLoss
from tunesmith.modeling.losses.preference import PreferenceLoss
from tunesmith.modeling.losses.sequence import SequenceLoss
from tunesmith.modeling.mode import evaluating


def task_answers(
    loss: CausalLoss,
    tokenizer: Tokenizer,
    index: TokenIndex,
    count: int,
    *,
    max_new_tokens: int,
    agree: Callable[[int], int] | None = None,
) -> list[dict[str, Any]]:
    """`count` items {row, prompt, reference, answer, stopped} spread over the index, always the same rows.

    A classifier's answer is the label that it decides for. agree: as in `generate`.
    """
    if isinstance(loss, ClassificationLoss):
        return [_classified(loss, tokenizer, index, number) for number in _chosen(index.num_documents, count)]
    if isinstance(loss, SequenceLoss):
        return [_written(loss, tokenizer, index, n, max_new_tokens) for n in _chosen(index.num_documents, count)]
    prompts = sample_prompts(index, tokenizer, count, better_of_pairs=isinstance(loss, PreferenceLoss))
    return answer(
        loss.model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        compute_dtype=loss.compute_dtype,
        agree=agree,
    )


def _chosen(num_documents: int, count: int) -> list[int]:
    return sorted(number for number, _ in zip(spread(num_documents), range(count), strict=False))


def _classified(loss: ClassificationLoss, tokenizer: Tokenizer, index: TokenIndex, number: int) -> dict[str, Any]:
    sample = index.document(number)
    count = loss.labels.num_targets
    tokens = sample.tokens[:-count].astype(np.int64)
    device = device_of(loss)
    with evaluating(loss), torch.no_grad():
        positions_t = torch.arange(len(tokens), device=device)
        logits_1C = loss.logits(torch.from_numpy(tokens).to(device), positions_t, [len(tokens)])
    single = loss.labels.kind == "single_label"
    decided = logits_1C.argmax(-1) if single else (logits_1C[0] > 0).long()
    shown = [
        named(targets, loss.labels) for targets in (sample.tokens[-count:].astype(np.int64), decided.cpu().numpy())
    ]
    reference, said = (", ".join(names) if isinstance(names, list) else names for names in shown)
    text = tokenizer.decode(tokens.tolist(), skip_special_tokens=True).strip()
    return {"row": sample.rows[0], "prompt": text, "reference": reference, "answer": said, "stopped": True}


def _written(
    loss: SequenceLoss, tokenizer: Tokenizer, index: TokenIndex, number: int, max_new_tokens: int
) -> dict[str, Any]:
    sample = index.document(number)
    first = int(np.flatnonzero(sample.supervised)[0])
    source = sample.tokens[:first].tolist()
    written = generate_target(loss.model, tokenizer, source, Sampling(max_new_tokens))  # type: ignore[arg-type]
    texts = (source, sample.tokens[first:].tolist(), written.tokens)
    prompt, reference, said = (tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in texts)
    return {"row": sample.rows[0], "prompt": prompt, "reference": reference, "answer": said, "stopped": written.stopped}
