"""The section data: rows, data sets and their mixture."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from tunesmith.configs.sections.section import Fraction, Section


class Deidentify(Section):
    """Replace identifying text in rows with surrogates of the same form before it is tokenized, cached or logged."""

    kinds: Annotated[list[Literal["person", "date", "phone", "email", "url", "number"]], Field(min_length=1)] = [
        *("person", "date", "phone", "email", "url", "number"),
    ]
    """Kinds of text to replace; number: record, insurance, card and account numbers."""
    skip: list[str] = []
    """Keys of a row whose values are not changed, such as the label."""
    spacy_model: str | None = None
    """An installed spaCy model that also detects names; null: names are detected by context and name lists only."""
    seed: NonNegativeInt = 0
    """Seed of the surrogates."""


Key = Annotated[str, Field(min_length=1)]


class Columns(Section):
    """Keys of the rows by their meaning, where they have other names; null: the name of the meaning itself."""

    messages: Key | None = None
    """Messages: a list of {role, content}."""
    conversations: Key | None = None
    """Turns: a list of {from, value} or {role, content}."""
    prompt: Key | None = None
    """What is answered: a text or a list of messages."""
    completion: Key | None = None
    """The answer to the prompt."""
    instruction: Key | None = None
    """Alpaca's instruction."""
    input: Key | None = None
    """Alpaca's input, which may be empty."""
    output: Key | None = None
    """Alpaca's output."""
    history: Key | None = None
    """Earlier pairs of question and answer."""
    system: Key | None = None
    """The system message."""
    tools: Key | None = None
    """Descriptions of the tools that the model may call."""
    text: Key | None = None
    """The text of the tasks text and classification."""
    text_pair: Key | None = None
    """The second text of a pair to classify."""
    label: Key | None = None
    """The label of the tasks classification and kto."""
    chosen: Key | None = None
    """The better answer of the task preference."""
    rejected: Key | None = None
    """The worse answer of the task preference."""
    source: Key | None = None
    """The source of the task seq2seq."""
    target: Key | None = None
    """The target of the task seq2seq."""

    def renamed(self) -> dict[str, str]:
        """Return the key of the rows by meaning, without those that are null."""
        return {meaning: key for meaning, key in self if key is not None}


def _tab_as_written(value: object) -> object:
    """Read `\\t` without quotes, which is two characters in YAML, as a tab."""
    return "\t" if value == "\\t" else value


def _fraction_of_percent(value: object) -> object:
    """Convert a percentage such as `10%` to a fraction; any other value is checked as it is."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        return float(match[1]) / 100
    return value


def _list_as_written(value: object) -> object:
    """Read a single path, which may be written without a list."""
    return [value] if isinstance(value, str) else value


Delimiter = Annotated[str, Field(pattern=r'^[^"\r\n]$'), BeforeValidator(_tab_as_written)]


class NamedRows(Section):
    """A data set with a name."""

    path: Annotated[list[str], Field(min_length=1), BeforeValidator(_list_as_written)]
    """A path, pattern, directory or URL, or a list of them, as in data.train."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    """Name in the plan, receipts, ledger and report; letters, digits, dot, dash and underscore. Null: the file name
    without its suffix."""
    columns: Columns | None = None
    """Keys of its rows that have other names. Null: data.columns."""
    csv_delimiter: Delimiter | None = None
    """The character between the columns of its CSV files. Null: data.csv_delimiter."""
    chat_template_kwargs: dict[str, JsonValue] = {}
    """Values of variables that the chat template reads, for its rows only; they override those of
    model.chat_template_kwargs."""

    @property
    def has_options(self) -> bool:
        """Whether its rows are read in another way than those of other data sets."""
        return bool(self.columns or self.csv_delimiter or self.chat_template_kwargs)

    @property
    def label(self) -> str:
        """The name, or the one derived from the first path; empty if that has no letter or digit."""
        if self.name is not None:
            return self.name
        stem = self.path[0].rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64]


class TrainingSet(NamedRows):
    """A data set of a mixture."""

    weight: NonNegativeFloat | None = None
    """Its share of the training samples is weight / sum of the weights; with 0 it is not trained, only evaluated. Null
    for all data sets: the shares follow from their sizes, see data.mixing."""
    max_rows: PositiveInt | None = None
    """Maximum number of its rows to use, selected by a hash of their content. Null: all."""


class ValidationSet(NamedRows):
    """Validation files with a name: their loss is reported under it. With the name of a training data set, the options
    of that one are the defaults."""


_Rows = TypeVar("_Rows", bound=NamedRows)


def _form_of_entry(value: object) -> str:
    return "path" if isinstance(value, str) else "section"


def _form_of_validation(value: object) -> str:
    return "files" if isinstance(value, list) else "fraction"


TrainingEntry = Annotated[
    Annotated[str, Tag("path")] | Annotated[TrainingSet, Tag("section")], Discriminator(_form_of_entry)
]

ValidationEntry = Annotated[
    Annotated[str, Tag("path")] | Annotated[ValidationSet, Tag("section")], Discriminator(_form_of_entry)
]


def _distinct_names(entries: Sequence[str | NamedRows]) -> Any:
    sets = _named(entries, NamedRows)
    labels = [each.label for each in sets]
    if unnamed := [each.path[0] for each in sets if not each.label]:
        raise ValueError(f"no name can be derived from {unnamed[0]!r}; give this data set a `name`")
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"two data sets have the name {twice[0]!r}; give one of them another `name`")
    return entries


def _usable_weights(entries: list[str | TrainingSet]) -> list[str | TrainingSet]:
    sets = _named(entries, TrainingSet)
    weights = [each.weight for each in sets if each.weight is not None]
    if weights and len(weights) < len(sets):
        without = next(each.label for each in sets if each.weight is None)
        raise ValueError(f"the data set {without!r} has no weight, but others have one; give all data sets a `weight`")
    if weights and not any(weights):
        raise ValueError("the weights of all data sets are 0; give at least one of them a positive `weight`")
    return entries


def _named(entries: Sequence[str | NamedRows], kind: type[_Rows]) -> list[_Rows]:
    """Return the entries as data sets; none if all are paths."""
    if all(isinstance(entry, str) for entry in entries):
        return []
    return [kind(path=[entry]) if isinstance(entry, str) else entry for entry in entries]  # pyright: ignore[reportReturnType]


class Mixing(Section):
    """The shares of the data sets in a mixture, and the length of its epochs."""

    temperature: PositiveFloat | None = None
    """T of the shares n^(1/T) / sum of n^(1/T), where n is the number of samples of a data set (T5: arXiv:1910.10683;
    the alpha of XLM-R and mT5 is 1/T). 1: proportional to the sizes; higher values raise the share of small data sets.
    Only without weights. Null: 1."""
    epoch_samples: Literal["total", "first_exhausted", "all_exhausted"] | PositiveInt = "total"
    """Samples of an epoch. total: as many as all data sets have together; first_exhausted, all_exhausted: until the
    first or the last data set has been used completely; or a number. A data set that is used up earlier starts again in
    another order."""


class Data(Section):
    """Training and validation rows, and how they are prepared."""

    train: Annotated[
        list[TrainingEntry],
        Field(min_length=1),
        AfterValidator(_distinct_names),
        AfterValidator(_usable_weights),
    ]
    """Files (.jsonl, .json, .csv, .parquet, .arrow, .txt, also compressed), glob patterns, or URLs (s3://, https://,
    ...), which are downloaded to the cache. Paths: relative to the recipe, then to the working directory. If an entry
    is a section, all entries are data sets that are mixed, see docs/data.md."""
    mixing: Mixing | None = None
    """Only if `train` has sections. Null: shares by weight, or by size if no data set has a weight."""
    columns: Columns | None = None
    """Keys of the rows that have other names, such as `{prompt: question, completion: answer}`. Null: none."""
    csv_delimiter: Delimiter | None = None
    """The character between the columns of CSV files. Null: tabs in .tsv files; in .csv files the comma, or the
    semicolon or tab if the header has one of them and no comma."""
    validation: Annotated[
        Annotated[Fraction, Tag("fraction")]
        | Annotated[list[ValidationEntry], AfterValidator(_distinct_names), Tag("files")],
        Discriminator(_form_of_validation),
        BeforeValidator(_fraction_of_percent),
    ] = 0.0
    """Fraction of the training rows to hold out (0.1, or 10%), selected by a hash of their content so that equal rows
    are in the same split, in a mixture of each data set; or a list of validation files, which may have names."""
    max_seq_len: Annotated[int, Field(ge=8)] = 1024
    """Maximum sequence length in tokens, including special tokens."""
    too_long: Literal["error", "truncate", "drop", "split"] = "error"
    """What to do with a row longer than max_seq_len: reject it, truncate it at the end, drop it, or
    (task text only) split it into several sequences."""
    packing: bool = True
    """Pack several rows into one sequence of max_seq_len tokens; rows never attend to each other.
    Applies to the tasks chat, completion and text; rows of other tasks are never packed."""
    max_rejects: NonNegativeInt = 0
    """Number of rejected rows to tolerate. With more, the run fails before training starts.
    Rejected rows are listed in receipts/rejects.jsonl."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Whether to keep or drop rows equal to an earlier row. The receipts record them in either case."""
    split_special_tokens: bool = True
    """Encode special tokens that system, user and tool messages, prompts and classified texts contain, such as
    `<|im_end|>`, as text, and reject answers that contain a token which begins or ends messages.
    false: they become control tokens, as in most other tools. Rows of the task text always keep them."""
    omitted_fields: Literal["error", "keep"] = "error"
    """What to do with a row of which the chat template does not show everything (a system message, tools, thinking):
    reject it, or train without what is missing and count such rows in the receipts. The thinking of earlier turns that
    a template shows in the last turn only is counted in either case."""
    earlier_thinking: Literal["template", "reject", "split"] = "template"
    """What to do with a conversation in which the chat template removes thinking from earlier turns, as that of Qwen 3
    does: train it as the template shows it and count it, reject it, or (task chat only) split it into a row for each
    assistant turn, which has its own thinking. The thinking of the last answer is never removed: such a row is
    rejected (see omitted_fields)."""
    deidentify: Deidentify | None = None
    """Null: rows are not changed. `{}`: names, dates, phone numbers and other identifiers are replaced, see
    docs/deidentification.md."""

    @model_validator(mode="after")
    def _mixing_fits(self) -> "Data":
        if self.mixing is not None and not self.training_sets:
            raise ValueError("`data.mixing` applies to data sets; write entries of data.train as `{path: ...}`")
        if self.mixing is not None and self.mixing.temperature is not None and self.training_sets[0].weight is not None:
            raise ValueError("weights and data.mixing.temperature contradict each other; remove one of them")
        return self

    @property
    def training_sets(self) -> list[TrainingSet]:
        """The data sets of a mixture; empty if `train` has paths only."""
        return _named(self.train, TrainingSet)

    @property
    def validation_sets(self) -> list[ValidationSet]:
        """The named validation files; empty if there are none, or only paths."""
        return _named(self.validation, ValidationSet) if isinstance(self.validation, list) else []

    @property
    def training_paths(self) -> list[str]:
        return paths_of(self.train)

    @property
    def validation_paths(self) -> list[str]:
        """All validation files; empty if a fraction is held out."""
        return paths_of(self.validation) if isinstance(self.validation, list) else []


def paths_of(entries: Sequence[str | NamedRows]) -> list[str]:
    """Return the paths of all entries, in order."""
    return [path for entry in entries for path in ([entry] if isinstance(entry, str) else entry.path)]
