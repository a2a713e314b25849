"""The supported tasks: facts only, one entry each.

Code for a task (its encoder, loss, evaluation, sample answers, section of the model card) is a function in a literal
table of the package that owns it; those tables have the same keys as `TASKS` (tests/test_architecture.py). All other
code reads a property of the task's entry and never compares task names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

TaskName = Literal["chat", "completion", "text", "classification", "seq2seq", "preference", "kto"]
"""As written in recipes, plans and receipts."""


@dataclass(frozen=True)
class Metric:
    """One number of an `evaluation` event. name: display name. path: its keys in the event. optional: omitted if the
    event does not have it."""

    name: str
    path: tuple[str, ...]
    form: Literal["decimal", "percent", "significant"] = "decimal"
    higher_is_better: bool = True
    optional: bool = False


def _loss(name: str) -> Metric:
    return Metric(name, ("loss",), higher_is_better=False)


TOKEN_METRICS = (
    _loss("loss (nats per token)"),
    Metric("perplexity", ("perplexity",), "significant", higher_is_better=False),
    Metric("token accuracy", ("token_accuracy",), "percent"),
)


def _of_labels(key: str, name: str, form: Literal["decimal", "percent"], *, higher_is_better: bool = True) -> Metric:
    return Metric(name, ("classification", "metrics", key), form, higher_is_better, optional=True)


LABEL_METRICS = (
    _of_labels("f1_macro", "macro-F1", "decimal"),
    _of_labels("accuracy", "accuracy", "percent"),
    _of_labels("subset_accuracy", "subset accuracy", "percent"),
    _of_labels("label_accuracy", "label accuracy", "percent"),
    _of_labels("balanced_accuracy", "balanced accuracy", "percent"),
    _of_labels("mcc", "MCC", "decimal"),
    _of_labels("auroc", "AUROC", "decimal"),
    _of_labels("auprc", "AUPRC", "decimal"),
    _of_labels("brier", "Brier score", "decimal", higher_is_better=False),
    _of_labels("calibration_error", "calibration error", "decimal", higher_is_better=False),
    _loss("loss (nats)"),
)


@dataclass(frozen=True)
class Task:
    name: TaskName
    section: str | None
    """Key of the task's options in the recipe and of its metrics in `evaluation` events; None: it has neither."""
    model: Literal["causal", "classifier", "encoder_decoder"]
    """Model class to load."""
    counts: Literal["tokens", "labels", "pairs", "rows"]
    """Unit of the loss: the gradient is that of the summed loss divided by the global number of these units."""
    packs: bool
    """Whether several rows may share a sequence."""
    pipeline_tag: str
    """Pipeline tag of the exported model (https://huggingface.co/docs/hub/models-tasks)."""
    metrics: tuple[Metric, ...] = TOKEN_METRICS
    """Metrics of the held-out rows, in display order."""
    templated: bool = False
    """Whether prompts are rendered with the model's chat template."""
    has_prompt: bool = True
    """Whether a row has a prompt that is not trained. Text without one may be split, and is continued, not answered."""
    section_shapes_rows: bool = False
    """Whether the options of its section affect the tokens of a row; if so, they are part of cache keys."""
    may_need_reference: bool = False
    """Whether its loss may use a reference model, the model before training (the recipe's section decides)."""
    needs_unrelated: bool = False
    """Whether its loss needs the mean over a batch of prompts paired with other rows' answers
    (data/index/unrelated.py)."""

    @property
    def is_causal(self) -> bool:
        """Whether the model is a causal language model."""
        return self.model == "causal"

    @property
    def is_classifier(self) -> bool:
        """Whether the model has a classification head."""
        return self.model == "classifier"

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model has an encoder for the source and a decoder for the target, with separate positions."""
        return self.model == "encoder_decoder"

    @property
    def is_paired(self) -> bool:
        """Whether a row has two answers, which become two documents of one sample."""
        return self.counts == "pairs"

    @property
    def is_rated(self) -> bool:
        """Whether a row has one answer and its rating, the last token of its document."""
        return self.counts == "rows"

    @property
    def counts_samples(self) -> bool:
        """Whether the loss is a mean over samples, however many tokens they have."""
        return self.counts in ("pairs", "rows")

    @property
    def has_token_loss(self) -> bool:
        """Whether the loss is a mean over tokens."""
        return self.counts == "tokens"

    @property
    def is_language_modeling(self) -> bool:
        """Whether a causal model is scored per token: by all ranks together, and compared on the same tokens."""
        return self.has_token_loss and self.is_causal


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
            "labels",
            False,
            "text-classification",
            LABEL_METRICS,
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
            (
                Metric("reward margin", ("preference", "margin")),
                Metric("preference accuracy", ("token_accuracy",), "percent"),
                _loss("loss"),
            ),
            templated=True,
            may_need_reference=True,
        ),
        Task(
            "kto",
            "kto",
            "causal",
            "rows",
            False,
            "text-generation",
            (
                Metric("reward margin", ("kto", "margin")),
                Metric("reward accuracy", ("token_accuracy",), "percent"),
                _loss("loss"),
            ),
            templated=True,
            may_need_reference=True,
            needs_unrelated=True,
        ),
    )
}
"""By name, in display order."""


def names_of(predicate: Callable[[Task], bool]) -> list[str]:
    """Return the names of the tasks that satisfy a predicate."""
    return [task.name for task in TASKS.values() if predicate(task)]


def listed(predicate: Callable[[Task], bool], joined_by: str = "and") -> str:
    """Return these names as a phrase: `chat, completion and text`."""
    *first, last = names_of(predicate)
    return f"{', '.join(first)} {joined_by} {last}" if first else last
