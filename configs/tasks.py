"""The tasks that a run can be trained for: facts only, one entry each.

What is done for a task (its encoder, loss, evaluation, sample answers, section of the model card) is a function in one
literal table of the package that owns it; those tables have the same keys as `TASKS` (tests/test_architecture.py).
"""

from dataclasses import dataclass
from typing import Literal

TaskName = Literal["chat", "completion", "text", "classification", "seq2seq", "preference"]
"""As the recipe, the plan and the receipts write it."""


@dataclass(frozen=True)
class Task:
    name: TaskName
    section: str | None
    """Key of the recipe under which its options are; None: it has none."""
    model: Literal["causal", "classifier", "encoder_decoder"]
    """Which of transformers' mappings the model is loaded from."""
    counts: Literal["tokens", "rows", "pairs"]
    """Unit over which the loss is averaged: the gradient is that of the sum divided by the global number of these."""
    packs: bool
    """Whether several rows may share a sequence."""
    pipeline_tag: str
    """Of the exported model on a hub (https://huggingface.co/docs/hub/models-tasks)."""
    templated: bool = False
    """Whether prompts are rendered with the model's chat template."""
    has_prompt: bool = True
    """Whether a row has a prompt that is not trained. Text without one may be split, and is continued, not answered."""
    section_shapes_rows: bool = False
    """Whether the options of its section decide which tokens a row becomes; they are part of cache keys then."""
    may_need_reference: bool = False
    """Whether its loss may compare with the model as it was before training."""
    metrics: tuple[str, ...] = ("loss", "perplexity", "token_accuracy")
    """Names of what its held-out rows are measured by, in the order in which they are shown."""

    @property
    def is_causal(self) -> bool:
        """Whether the model is a causal language model, which continues text."""
        return self.model == "causal"

    @property
    def is_classifier(self) -> bool:
        """Whether the model has a head for labels."""
        return self.model == "classifier"

    @property
    def is_paired(self) -> bool:
        """Whether a row holds two answers, which become two documents of one sample."""
        return self.counts == "pairs"

    @property
    def scores_tokens(self) -> bool:
        """Whether held-out rows are scored token by token, as in language modeling."""
        return self.counts == "tokens" and self.is_causal


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("chat", None, "causal", "tokens", True, "text-generation", templated=True),
        Task("completion", None, "causal", "tokens", True, "text-generation"),
        Task("text", None, "causal", "tokens", True, "text-generation", has_prompt=False),
        Task(
            "classification",
            "classification",
            "classifier",
            "rows",
            False,
            "text-classification",
            metrics=("loss", "accuracy", "f1_macro"),
            section_shapes_rows=True,
        ),
        Task(
            "seq2seq",
            "seq2seq",
            "encoder_decoder",
            "tokens",
            False,
            "text2text-generation",
            section_shapes_rows=True,
        ),
        Task(
            "preference",
            "preference",
            "causal",
            "pairs",
            False,
            "text-generation",
            templated=True,
            may_need_reference=True,
            metrics=("loss", "reward_accuracy", "reward_margin"),
        ),
    )
}
