"""The options of the tasks: one section per task that has any."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from tunesmith.configs.sections.section import Section


class Classification(Section):
    """Options of task classification: rows with a text and its label or labels."""

    kind: Literal["single_label", "binary", "multi_label"] = "single_label"
    """single_label: one of several labels, softmax. binary: one of two, one logit. multi_label: any number."""
    text_column: Annotated[str, Field(min_length=1)] = "text"
    """Key of a row's text."""
    label_column: Annotated[str, Field(min_length=1)] = "label"
    """Key of a row's label: a string, an integer or a boolean; for multi_label a list of them, which may be empty."""
    labels: Annotated[list[str], Field(min_length=1)] | None = None
    """Label names by class index; for a binary task the second one is the positive class.
    Null: the labels of the training files, sorted."""
    class_weights: Literal["balanced"] | list[PositiveFloat] | None = None
    """Loss weight of each label, in the order of `labels`; for binary and multi_label, of its positive rows.
    balanced: computed from the training rows, so that all labels (or the positive and negative rows of one) have equal
    total weight."""


class Seq2Seq(Section):
    """Options of task seq2seq: rows with a source and a target text, for encoder-decoder models."""

    source_column: Annotated[str, Field(min_length=1)] = "source"
    """Key of a row's source text, the encoder's input."""
    target_column: Annotated[str, Field(min_length=1)] = "target"
    """Key of a row's target text, which the decoder learns to generate."""
    prefix: str = ""
    """Text prepended to every source, such as `translate English to German: `; prepend it at inference as well."""


class Preference(Section):
    """Options of task preference: pairs of a chosen and a rejected answer."""

    loss: Literal["dpo", "ipo", "orpo"] = "dpo"
    """dpo (arXiv:2305.18290) and ipo (arXiv:2310.12036) use the base model as reference; orpo (arXiv:2403.07691) needs
    no reference and also trains on the chosen answer."""
    beta: PositiveFloat = 0.1
    """dpo: strength of the constraint to the base model. ipo: tau. orpo: weight of the odds-ratio loss."""

    @property
    def uses_reference(self) -> bool:
        return self.loss != "orpo"


class Kto(Section):
    """Options of task kto: single answers rated good or bad (KTO: Ethayarajh et al. 2024, arXiv:2402.01306)."""

    beta: PositiveFloat = 0.1
    """Strength of the constraint to the base model; higher values stay closer to it."""
    desirable_weight: NonNegativeFloat = 1.0
    """Loss weight of good answers."""
    undesirable_weight: NonNegativeFloat = 1.0
    """Loss weight of bad answers. If one kind is rarer, raise its weight until weight times number of rows is about
    equal for both; it may be up to a third larger for the good answers."""
