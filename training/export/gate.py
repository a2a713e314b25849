"""The export gate: load the export from disk with plain transformers and peft, and compare it with the live model.

Weights must be bitwise equal. Then the logits are compared: the live model runs as in training (packed attention, its
precision), the export as any user would run it. So equal weights with another configuration, mask or position fail,
too. T tokens of a row, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
import torch
from transformers import GenerationConfig

from tunesmith.configs.plan import Plan
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.evaluation.answers import prompt_length, spread
from tunesmith.evaluation.score import device_of
from tunesmith.inference.generate import generate
from tunesmith.inference.types import Sampling
from tunesmith.kernels.varlen_attention import Documents
from tunesmith.modeling.base_model.multimodal import text_model_in
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.mode import evaluating
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import autocast_dtype, autocast_to, dtype_of
from tunesmith.progress import advance
from tunesmith.training.export.files import plain_weights
from tunesmith.training.export.plain_model import load_plain
from tunesmith.training.export.published_class import text_weights
from tunesmith.training.export.whole_checkpoint import carried_fault

TOLERANCE = {"fp32": 1e-3, "bf16": 1e-1, "fp16": 1.25e-2}
"""Limit of the logit difference by precision: in fp32 absolute, otherwise as a fraction of the largest logit. bf16 has
8 bits and fp16 11, and rounding differs by code path.

SmolLM2-135M: 0.044 between autocast and plain bf16; 0.24 with a rotary base off by half, 0.34 with the heads of one
layer in another order, 0.48 with positions that restart.
"""
NUM_ROWS = 4
LONGEST_TOKENS = 512
"""Length limit of the longest row; the others are truncated to ROW_TOKENS. One is long, to test positions, too."""
ROW_TOKENS = 128
NUM_PROMPTS = 2
PROMPT_TOKENS = 64
NEW_TOKENS = 24

_PLAIN_TEXT = (
    "The licence grants you the right to use, copy and change the work, as long as this notice stays with every copy.",
    "Open the settings, choose the account, and enter the code that was sent to your telephone within five minutes.",
    "for number in range(10):\n    print(number, number * number)\n",
)


@dataclass(frozen=True)
class GateRows:
    """source: validation, train or built-in text. rows: token ids. prompts: token ids to continue."""

    source: str
    rows: list[list[int]]
    prompts: list[list[int]]


@dataclass
class Gate:
    """Result of the comparison. fault: why the export did not pass, with row and position if known; None: it passed."""

    max_logit_difference: float = 0.0
    tolerance: float = TOLERANCE["fp32"]
    relative: bool = False
    """Whether the tolerance is a fraction of the row's largest logit; for a classifier, of the largest of all rows."""
    largest_logit: float = 0.0
    rows: int = 0
    row_source: str = ""
    greedy_equal: bool = True
    greedy_ties: int = 0
    """Continuations that differ at a tie: both models rank two tokens first within the tolerance."""
    max_relative_difference: float = 0.0
    """`max_logit_difference` as a fraction of the largest logit: the measure if `relative`."""
    fault: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the export passed."""
        return self.fault is None

    def facts(self) -> dict[str, Any]:
        """Return the result as a JSON object, for event and manifest."""
        return {**asdict(self), "passed": self.passed}


def gate_rows(plan: Plan, tokenizer: Tokenizer) -> GateRows:
    """Return validation rows if there are any, else training rows; built-in sentences if the index was deleted."""
    for source, split in (("validation", plan.data.validation), ("train", plan.data.train)):
        if split is not None and split.num_rows and Path(split.index).is_dir():
            return _with_new_tokens(_rows_of(TokenIndex.open(Path(split.index)), source), plan)
    encoded = [tokenizer.encode(text) for text in _PLAIN_TEXT]
    prompts = [tokens[: len(tokens) // 2] for tokens in encoded[:NUM_PROMPTS]]
    return _with_new_tokens(GateRows("built-in text", encoded, prompts), plan)


def run_gate(model: torch.nn.Module, export: Path, plan: Plan, tokenizer: Tokenizer, rows: GateRows) -> Gate:
    """Compare the live model with the export on disk. A difference does not raise; it is reported in `fault`."""
    precision, dtype = plan.compute.precision, dtype_of(plan.compute.precision)
    gate = Gate(
        tolerance=TOLERANCE[precision], relative=precision != "fp32", rows=len(rows.rows), row_source=rows.source
    )
    device = device_of(model)
    plain, fault = load_plain(export, plan, dtype, device)
    gate.fault = fault or missing_stops(export, tokenizer)
    if plain is None or gate.fault is not None:
        return gate
    gate.fault = other_weight(model, plain, dtype) or _carried_fault(plan, export)
    with evaluating(model), torch.no_grad():
        pair = _Pair(model, plain, gate, autocast_dtype(precision))
        for number, tokens in enumerate(rows.rows):
            pair.compare_logits(tokens, f"row {number} of the gate")
        for number, tokens in enumerate(rows.prompts):
            if gate.fault is None:
                pair.compare_greedy(tokens, tokenizer, f"prompt {number} of the gate")
    return gate


class _Pair:
    """The live and the exported model, compared on the same tokens."""

    def __init__(self, live: torch.nn.Module, plain: torch.nn.Module, gate: Gate, compute_dtype: torch.dtype | None):
        self.live, self.plain, self.gate, self.compute_dtype = live, plain, gate, compute_dtype
        self.device = device_of(live)

    def compare_logits(self, tokens: Sequence[int], where: str) -> None:
        live_TV, plain_TV = self._logits(tokens)
        difference_T = (live_TV - plain_TV).abs().amax(dim=1)
        worst = int(torch.nan_to_num(difference_T, nan=torch.inf).argmax())
        largest, difference = float(live_TV.abs().max()), float(difference_T[worst])
        gate = self.gate
        gate.largest_logit = max(gate.largest_logit, largest)
        gate.max_logit_difference = larger(gate.max_logit_difference, difference)
        gate.max_relative_difference = larger(gate.max_relative_difference, relative_difference(difference, largest))
        if not difference <= self._allowed(live_TV) and gate.fault is None:  # `not <=`: True for NaN, too
            gate.fault = (
                f"its logits differ by {difference:.3g} from those of the trained model (largest logit {largest:.3g}, "
                f"limit {self._allowed(live_TV):.3g}): {where}, position {worst}"
            )

    def compare_greedy(self, tokens: Sequence[int], tokenizer: Tokenizer, where: str) -> None:
        """Compare the greedy continuations of both models; a difference at a tie is accepted."""
        answer = generate(
            self.live,
            tokenizer,  # type: ignore[arg-type]  # a cached_property is no property to pyright
            list(tokens),
            Sampling(NEW_TOKENS),
            compute_dtype=self.compute_dtype,
        )
        stops = set(tokenizer.stop_token_ids)
        live, plain = until_stop(answer.tokens, stops), until_stop(self._plain_greedy(tokens), stops)
        if live == plain:
            return
        self.gate.greedy_equal = False
        same = next(
            (i for i, (a, b) in enumerate(zip(live, plain, strict=False)) if a != b), min(len(live), len(plain))
        )
        live_TV, plain_TV = self._logits([*tokens, *live[:same]])
        best, next_best = live_TV[-1].topk(2).values.tolist()
        allowed = self._allowed(live_TV)
        if float((live_TV[-1] - plain_TV[-1]).abs().max()) <= allowed and best - next_best <= 2 * allowed:
            self.gate.greedy_ties += 1
        else:
            self.gate.fault = f"its greedy answer differs from the trained model's after {same} tokens: {where}"

    def _allowed(self, live_TV: torch.Tensor) -> float:
        return self.gate.tolerance * (float(live_TV.abs().max()) if self.gate.relative else 1.0)

    def _logits(self, tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of both models for a single row, fp32 [T, V] each."""
        inner = causal_lm(self.live)
        tokens_1T = torch.tensor([list(tokens)], device=self.device)
        packed = {}
        if inner.config._attn_implementation == PACKED:
            positions_1T = torch.arange(len(tokens), device=self.device)[None]
            packed = {"position_ids": positions_1T, "documents": Documents([len(tokens)])}
        with autocast_to(self.compute_dtype, self.device):
            live = inner(input_ids=tokens_1T, use_cache=False, **packed)
        plain = self.plain(input_ids=tokens_1T, use_cache=False)
        return live.logits[0].float(), plain.logits[0].float()

    def _plain_greedy(self, tokens: Sequence[int]) -> list[int]:
        tokens_1T = torch.tensor([list(tokens)], device=self.device)
        output: torch.Tensor = self.plain.generate(  # type: ignore[operator]
            input_ids=tokens_1T, attention_mask=torch.ones_like(tokens_1T), max_new_tokens=NEW_TOKENS, do_sample=False
        )
        return output[0, len(tokens) :].tolist()


def other_weight(live: torch.nn.Module, plain: torch.nn.Module, dtype: torch.dtype) -> str | None:
    """Return the first difference of weights, compared bitwise with adapters merged; None if all are equal."""
    expected, exported = plain_weights(causal_lm(live), dtype), plain_weights(causal_lm(plain), dtype)
    if type(causal_lm(plain)) is not type(causal_lm(live)):
        exported = text_weights(exported)
    if different := sorted(expected.keys() ^ exported.keys()):
        return f"its weights are not those of the trained model: only one of them has {different[0]}"
    for name, weight in expected.items():
        advance()
        if not torch.equal(weight(), exported[name]()):
            return f"its weight {name} is not the trained model's"
    return None


def _carried_fault(plan: Plan, export: Path) -> str | None:
    """Return the fault of what a multimodal export carries through; None if there is none, or it is an adapter."""
    base = Path(plan.model.directory)
    if plan.model.carried is None or (export / "adapter_config.json").is_file():
        return None
    text = text_model_in(base)
    assert text is not None  # as when the run was planned
    return carried_fault(text, base, export)


def missing_stops(export: Path, tokenizer: Tokenizer) -> str | None:
    """Return a fault if the export's generation_config.json lacks a stop token: its answers would not stop there."""
    declared = GenerationConfig.from_pretrained(export).eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    missing = [token for token in tokenizer.stop_token_ids if token not in declared]
    return f"its generation_config.json lacks the stop tokens {missing}" if missing else None


def _rows_of(index: TokenIndex, source: str) -> GateRows:
    """The longest of a sample of documents spread over the index, and some of the others."""
    chosen = [number for number, _ in zip(spread(index.num_documents), range(8 * NUM_ROWS), strict=False)]
    documents = sorted((index.document(number) for number in chosen), key=lambda sample: -len(sample.tokens))
    rows = [documents[0].tokens[:LONGEST_TOKENS].tolist()]
    others = documents[1 :: max(1, len(documents) // NUM_ROWS)][: NUM_ROWS - 1]
    rows += [sample.tokens[:ROW_TOKENS].tolist() for sample in others]
    prompts = []
    for sample in reversed(documents):
        length = prompt_length(sample.supervised)
        if length is not None and len(prompts) < NUM_PROMPTS:
            prompts.append(sample.tokens[max(0, length - PROMPT_TOKENS) : length].tolist())
    return GateRows(source, rows, prompts)


def _with_new_tokens(rows: GateRows, plan: Plan) -> GateRows:
    """Add a row and a prompt with the added tokens: the others may have none of them."""
    new = plan.model.new_rows[:ROW_TOKENS]
    if not new:
        return rows
    row = [*rows.rows[-1][:PROMPT_TOKENS], *new]
    return GateRows(rows.source, [*rows.rows, row], [*rows.prompts, row])


def until_stop(tokens: Sequence[int], stops: set[int]) -> list[int]:
    """Return the tokens before the first stop token."""
    kept: list[int] = []
    for token in tokens:
        if token in stops:
            break
        kept.append(token)
    return kept


def larger(first: float, second: float) -> float:
    """The larger of two numbers; NaN if either is NaN, which Python's max may hide."""
    return second if second != second or second > first else first


def relative_difference(difference: float, scale: float) -> float:
    """A difference as a fraction of `scale`, the largest logit; infinite if only that is zero."""
    if scale == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / scale
