"""The options that determine the documents of a data set, apart from the tokenizer. Its JSON is part of cache keys and
must not change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.data import Columns, Deidentify
from tunesmith.configs.tasks import TASKS, Task
from tunesmith.data.deidentification.deidentify import REVISION
from tunesmith.errors import InputError

ENCODING = 3
"""Increase it when the same rows would give other tokens. 2: special tokens in rows are text, and assistant turns end
where renderings say. 3: what a chat template inserts into answers is not trained."""


@dataclass(frozen=True)
class EncodingSpec:
    """task, max_seq_len, too_long, omitted_fields, earlier_thinking: as in the recipe. section: the task's section of
    the recipe, if its options affect the documents. labels: label names of a classification, by class index. revision:
    of the encoders; 1 only to compare with what an earlier version prepared."""

    task: str
    max_seq_len: int
    too_long: str = "error"
    section: BaseModel | None = None
    labels: tuple[str, ...] | None = None
    deidentify: Deidentify | None = None
    columns: Columns | None = None
    split_special_tokens: bool = True
    omitted_fields: str = "error"
    earlier_thinking: str = "template"
    revision: int = ENCODING

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        labels: Sequence[str] | None = None,
        *,
        task: str | None = None,
        max_seq_len: int | None = None,
        too_long: str | None = None,
    ) -> "EncodingSpec":
        """Create the spec of a recipe. task, max_seq_len, too_long: None: the recipe's value."""
        facts = TASKS[task or recipe.task]
        return cls(
            facts.name,
            max_seq_len or recipe.data.max_seq_len,
            too_long or recipe.data.too_long,
            getattr(recipe, facts.section) if facts.section and facts.section_shapes_rows else None,
            tuple(labels) if facts.is_classifier and labels is not None else None,
            recipe.data.deidentify,
            recipe.data.columns,
            recipe.data.split_special_tokens,
            recipe.data.omitted_fields,
            recipe.data.earlier_thinking,
        )

    @property
    def facts(self) -> Task:
        return TASKS[self.task]

    @property
    def withholds(self) -> bool:
        """Whether the original content of rows must not be shown."""
        return self.deidentify is not None

    def options(self) -> dict[str, object]:
        """Return the parts of cache keys other than task, max_seq_len and too_long; empty for most tasks."""
        options: dict[str, object] = {}
        if self.section is not None:
            options[str(self.facts.section)] = self.section.model_dump()
        if self.facts.is_classifier:
            options["labels"] = None if self.labels is None else list(self.labels)
        if self.deidentify is not None:
            options |= {"deidentify": self.deidentify.model_dump(), "deidentify_revision": REVISION}
        if self.columns is not None and (renamed := self.columns.renamed()):
            options["columns"] = renamed
        if self.revision > 1 and self.facts.has_prompt:  # a text is tokenized as before
            options["encoding"] = self.revision
            if not self.split_special_tokens:
                options["split_special_tokens"] = False
        if self.omitted_fields != "error":
            options["omitted_fields"] = self.omitted_fields
        if self.earlier_thinking != "template":
            options["earlier_thinking"] = self.earlier_thinking
        return options

    def as_json(self) -> list[object]:
        return [self.task, self.max_seq_len, self.too_long, self.options()]

    @classmethod
    def from_json(cls, value: list[Any]) -> "EncodingSpec":
        """Inverse of `as_json`."""
        task, max_seq_len, too_long, options = value
        name = TASKS[task].section
        section = type(Recipe.model_fields[name].default) if name is not None and name in options else None
        labels, deidentify, columns = (options.get(key) for key in ("labels", "deidentify", "columns"))
        return cls(
            task,
            max_seq_len,
            too_long,
            None if section is None else section(**options[name]),
            None if labels is None else tuple(labels),
            None if deidentify is None else Deidentify(**deidentify),
            None if columns is None else Columns(**columns),
            options.get("split_special_tokens", True),
            options.get("omitted_fields", "error"),
            options.get("earlier_thinking", "template"),
        )

    def require_splittable(self) -> None:
        """Raise InputError if too_long is split and the task does not support it."""
        if self.too_long == "split" and self.facts.has_prompt:
            raise InputError(
                f"rows of the task {self.task} cannot be split",
                where="data.too_long: split",
                remedy="use error, truncate or drop; split is for the task text only",
            )

    def require_one_conversation(self) -> None:
        """Raise InputError if earlier_thinking is split, for a task whose rows stay one conversation or pair."""
        if self.earlier_thinking == "split":
            raise InputError(
                f"rows of the task {self.task} cannot be split into turns",
                where="data.earlier_thinking: split",
                remedy="use template or reject; split is for the task chat only",
            )
