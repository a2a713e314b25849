"""The export gate of non-causal models: classifiers and encoder-decoders. See gate.py.

The live model runs as in training (classifiers: packed attention, all rows concatenated; encoder-decoders: a padded
batch), the export as any user would run it, row by row.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from tunesmith.configs.plan import Plan
from tunesmith.data.index.loader import micro_batch
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import RunFault
from tunesmith.evaluation.answers import spread
from tunesmith.evaluation.score import device_of
from tunesmith.inference.generate import generate_target
from tunesmith.inference.types import Sampling
from tunesmith.modeling.loading.heads import labels_of
from tunesmith.modeling.losses.sequence import split_documents, teacher_forced
from tunesmith.modeling.losses.task_loss import LossOptions, classification_loss
from tunesmith.modeling.mode import evaluating
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import autocast_dtype, autocast_to, dtype_of
from tunesmith.training.export.gate import (
    TOLERANCE,
    Gate,
    larger,
    missing_stops,
    other_weight,
    relative_difference,
    until_stop,
)
from tunesmith.training.export.plain_model import load_plain

NUM_ROWS = 16
NEW_TOKENS = 24
NUM_PROMPTS = 2


def run_task_gate(model: torch.nn.Module, export: Path, plan: Plan, tokenizer: Tokenizer) -> Gate:
    """Compare the live model with the export on disk. A difference does not raise; it is reported in `fault`.

    RunFault if the prepared rows were deleted: there would be nothing to compare on.
    """
    precision, dtype = plan.compute.precision, dtype_of(plan.compute.precision)
    source, index = _index_of(plan)
    chosen = [number for number, _ in zip(spread(index.num_documents), range(NUM_ROWS), strict=False)]
    gate = Gate(tolerance=TOLERANCE[precision], relative=precision != "fp32", rows=len(chosen), row_source=source)
    is_classifier = plan.recipe.task_facts.is_classifier
    auto = AutoModelForSequenceClassification if is_classifier else AutoModelForSeq2SeqLM
    plain, gate.fault = load_plain(export, plan, dtype, device_of(model), auto)
    if plain is None:
        return gate
    gate.fault = _names_fault(plain, plan) if is_classifier else missing_stops(export, tokenizer)
    gate.fault = gate.fault or other_weight(model, plain, dtype)
    if gate.fault is not None:
        return gate
    with evaluating(model), torch.no_grad():
        if is_classifier:
            _compare_classes(model, plain, plan, index, chosen, gate, autocast_dtype(precision))
        else:
            _compare_sequences(model, plain, tokenizer, index, chosen, gate, autocast_dtype(precision))
    return gate


def _index_of(plan: Plan) -> tuple[str, TokenIndex]:
    for source, split in (("validation", plan.data.validation), ("train", plan.data.train)):
        if split is not None and split.num_rows and Path(split.index).is_dir():
            return source, TokenIndex.open(Path(split.index))
    raise RunFault(
        "the prepared rows are missing: the export cannot be compared with the trained model",
        where=plan.data.train.index,
        remedy="prepare them again: run `tunesmith plan` with the run's recipe",
    )


def _names_fault(plain: torch.nn.Module, plan: Plan) -> str | None:
    labels = labels_of(plan)
    assert labels is not None
    exported = causal_lm(plain).config.id2label
    if exported == dict(enumerate(labels.shown)):
        return None
    return f"its label names are {exported}, not those of the run"


def _compare_classes(
    model: torch.nn.Module,
    plain: torch.nn.Module,
    plan: Plan,
    index: TokenIndex,
    chosen: list[int],
    gate: Gate,
    dtype: torch.dtype | None,
) -> None:
    loss = classification_loss(plan, model, LossOptions(compute_dtype=dtype))
    device, count = device_of(model), loss.labels.num_targets
    texts = [torch.from_numpy(index.document(n).tokens[:-count].astype(np.int64)).to(device) for n in chosen]
    lengths = [len(text) for text in texts]
    positions_T = torch.cat([torch.arange(length, device=device) for length in lengths])
    live_DC = loss.logits(torch.cat(texts), positions_T, lengths)
    scale = float(
        live_DC.abs().max()
    )  # of all rows: the few logits of one row may all be near zero, but not their rounding errors
    for number, (text, live_C) in enumerate(zip(texts, live_DC, strict=True)):
        plain_C = plain(input_ids=text[None], **loss.more_inputs(text, [len(text)])).logits[0].float()
        _note(gate, live_C, plain_C, scale, f"row {number} of the gate")


def _compare_sequences(
    model: torch.nn.Module,
    plain: torch.nn.Module,
    tokenizer: Tokenizer,
    index: TokenIndex,
    chosen: list[int],
    gate: Gate,
    dtype: torch.dtype | None,
) -> None:
    device = device_of(model)
    flat = micro_batch([index.document(number) for number in chosen])
    tokens_T, labels_T = (torch.from_numpy(array).to(device) for array in (flat.tokens, flat.labels))
    sources, targets = split_documents(tokens_T, labels_T, flat.lengths)
    targets_DU = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
    with autocast_to(dtype, device):
        live_DUV = teacher_forced(causal_lm(model), sources, targets_DU).float()
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        plain_UV = plain(input_ids=source[None], labels=target[None]).logits[0].float()
        live_UV = live_DUV[number, : len(target)]
        _note(gate, live_UV, plain_UV, float(live_UV.abs().max()), f"row {number} of the gate")
    stops = set(tokenizer.stop_token_ids)
    for number, source in enumerate(sources[:NUM_PROMPTS]):
        with autocast_to(dtype, device):
            live = generate_target(model, tokenizer, source.tolist(), Sampling(NEW_TOKENS)).tokens  # type: ignore[arg-type]
        output = plain.generate(input_ids=source[None], max_new_tokens=NEW_TOKENS, do_sample=False)  # type: ignore[operator]
        if live != until_stop(output[0, 1:].tolist(), stops):
            gate.greedy_equal = False
            gate.fault = (
                gate.fault or f"its greedy output differs from the trained model's: prompt {number} of the gate"
            )


def _note(gate: Gate, live: torch.Tensor, plain: torch.Tensor, scale: float, where: str) -> None:
    """Record the difference of two rows of logits. scale: what a relative tolerance is a fraction of."""
    difference = float((live - plain).abs().max())
    gate.largest_logit = max(gate.largest_logit, float(live.abs().max()))
    gate.max_logit_difference = larger(gate.max_logit_difference, difference)
    gate.max_relative_difference = larger(gate.max_relative_difference, relative_difference(difference, scale))
    allowed = gate.tolerance * (scale if gate.relative else 1.0)
    if not difference <= allowed and gate.fault is None:  # `not <=`: True for NaN, too
        gate.fault = f"its logits differ by {difference:.3g} from the trained model's (limit {allowed:.3g}): {where}"
