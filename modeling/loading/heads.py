"""Classification heads: labels, initial weights and the model's configuration."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from tunesmith.configs.plan import Plan
from tunesmith.errors import RunFault
from tunesmith.modeling.loading.checks import require_finite, require_whole
from tunesmith.modeling.loading.document_rope import rotate_by_document
from tunesmith.modeling.loading.keyword_passing import pass_keywords
from tunesmith.modeling.loading.load import from_directory
from tunesmith.modeling.loading.packed_attention_hook import PACKED

FRESH = ("classifier", "score", "pre_classifier", "bert.pooler", "roberta.pooler")
"""Modules that a base model may lack: they are initialized, and trained whatever the method."""


@dataclass(frozen=True)
class Labels:
    """kind: single_label, binary or multi_label. names: in the order of their ids. seed: of a new head. separator: of a
    pair of texts, after which the token type is 1; None for models without token types."""

    kind: str
    names: tuple[str, ...]
    seed: int
    separator: int | None = None

    @property
    def num_targets(self) -> int:
        """Number of targets at the end of a row's document."""
        return len(self.names) if self.kind == "multi_label" else 1

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the logits; a binary task has a single one, of its second label."""
        return self.names[1:] if self.kind == "binary" else self.names


def labels_of(plan: Plan) -> Labels | None:
    """Return the labels of a classification plan; None for other tasks."""
    if not plan.recipe.task_facts.is_classifier:
        return None
    assert plan.data.labels is not None
    kind, separator = plan.recipe.classification.kind, plan.model.pair_separator
    return Labels(kind, tuple(plan.data.labels), plan.recipe.seed, separator)


def classifier_config(directory: Path, labels: Labels) -> Any:
    """Return the directory's model configuration with this head: names and number of labels, problem type."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    config.num_labels = len(labels.shown)
    config.id2label = dict(enumerate(labels.shown))
    config.label2id = {name: number for number, name in enumerate(labels.shown)}
    single = labels.kind == "single_label"
    config.problem_type = "single_label_classification" if single else "multi_label_classification"
    if getattr(config, "pad_token_id", None) is None:  # a decoder's head uses the last token before the padding
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        pad = tokenizer.pad_token_id
        config.pad_token_id = pad if pad is not None else tokenizer.eos_token_id
    return config


def load_classifier(
    directory: Path, labels: Labels, *, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """Load the model of a Hugging Face directory with a head for these labels, in eval mode.

    An existing head of the same shape is kept; otherwise a new one is initialized from the seed, the same on every
    rank. InputError if weights other than the head's are missing or of another shape.
    """
    config = classifier_config(directory, labels)
    with torch.random.fork_rng(devices=[]):
        model, info = from_directory(
            AutoModelForSequenceClassification,
            directory,
            "",
            config=config,
            dtype=dtype,
            attn_implementation=PACKED,
            ignore_mismatched_sizes=True,
        )
    # Transformers also initializes weights of another shape at random: only those of a head may be.
    odd = {entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]}
    odd |= set(info["missing_keys"])
    fresh = {name for name in odd if name.startswith(tuple(f"{part}." for part in FRESH))}
    require_whole(odd - fresh, directory, "missing or of another shape")
    for name, parameter in model.named_parameters():
        if name in fresh:
            _initialise(name, parameter, labels.seed, getattr(config, "initializer_range", 0.02))
    require_finite(model.named_parameters(), directory)
    rotate_by_document(model)
    pass_keywords(model)
    return model.to(device).eval()


def is_classifier(model: nn.Module) -> bool:
    """Whether the model is a sequence classifier, by its class name."""
    return type(model).__name__.endswith("ForSequenceClassification")


def unfreeze_heads(model: PreTrainedModel) -> None:
    """Make the head and its pooler trainable: without them in the base model they are random."""
    for name in FRESH:
        module: Any = model
        for part in name.split("."):
            module = getattr(module, part, None)
        if isinstance(module, nn.Module):
            module.requires_grad_(True)


def pooled_logits(model: PreTrainedModel, hidden_TH: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Return the logits [D, C] of concatenated documents, as the class computes them for a single row.

    hidden: [T, H]; lengths: tokens of each document, summing to T. A decoder's head uses the last token, an encoder's
    the first. RunFault for a class with an unknown head.
    """
    stops = torch.tensor(lengths, device=hidden_TH.device).cumsum(0)
    first_DH = hidden_TH[stops - torch.tensor(lengths, device=hidden_TH.device)]
    inner: Any = model
    if hasattr(model, "score"):
        return inner.score(hidden_TH[stops - 1])
    if hasattr(model, "bert"):
        return inner.classifier(inner.dropout(inner.bert.pooler(first_DH[:, None])))
    if hasattr(model, "roberta"):
        return inner.classifier(first_DH[:, None])
    if hasattr(model, "distilbert"):
        return inner.classifier(inner.dropout(torch.relu(inner.pre_classifier(first_DH))))
    raise RunFault(f"the head of {type(model).__name__} is not known")


def position_start(model: PreTrainedModel) -> int:
    """Return the position of a row's first token: RoBERTa's positions start after the padding index."""
    return model.config.pad_token_id + 1 if hasattr(model, "roberta") else 0


def _initialise(name: str, parameter: nn.Parameter, seed: int, scale: float) -> None:
    """Initialize with normal weights and zero biases, from a generator seeded for this parameter only."""
    if parameter.dim() < 2:
        parameter.data.zero_()
        return
    digest = hashlib.sha256(f"{seed} head {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    parameter.data.copy_(torch.empty(parameter.shape).normal_(0.0, scale, generator=generator))
