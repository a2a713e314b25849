"""The recipe's schema, the only place that defines units, choices and defaults of its keys."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
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

from tunesmith.configs.tasks import TASKS, Task, TaskName

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A section of the recipe: unknown keys are errors, and values are not converted between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @property
    def uses_reference(self) -> bool:
        """Whether the loss that a task's options select uses a reference model."""
        return True


def _token_as_written(value: object) -> object:
    """Read a token without options, which may be written as a string."""
    return {"token": value} if isinstance(value, str) else value


class NewToken(Section):
    """A token to add to the vocabulary: a string, or a section with options."""

    token: str
    """The token's text. Texts are searched for it before anything else, exactly as it is written here."""
    description: Annotated[str, Field(min_length=1)] | None = None
    """A text; the token's initial embedding is the mean over the tokens of this text. Null: the mean over the
    vocabulary."""
    special: bool = False
    """A control token, which answers usually do not show. In messages of users it is encoded as text (see
    data.split_special_tokens)."""


class Model(Section):
    """The base model and its chat template."""

    base: Annotated[str, Field(min_length=1)]
    """A Hugging Face directory, a GGUF file, or a hub id (`organization/name`).
    Paths: relative to the recipe, then to the working directory."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; a commit makes the run reproducible."""
    adapter: Literal["merge", "continue"] | None = None
    """Required if `base` is the directory of a LoRA adapter. merge: the adapter is merged into its base model once, in
    fp32, and the run trains on the result. continue: training starts from the adapter's weights; method must have its
    settings."""
    adapter_base: str | None = None
    """The base model of that adapter: a directory or hub id. Null: as named in adapter_config.json."""
    chat_template: str | None = None
    """A file with a Jinja chat template that overrides the model's."""
    chat_template_kwargs: dict[str, JsonValue] = {}
    """Values of variables that the chat template reads, such as `{enable_thinking: false}`, in training, evaluation and
    the export, whose template has them as defaults. A name that the template does not read is an error."""
    add_tokens: list[Annotated[NewToken, BeforeValidator(_token_as_written)]] = []
    """Tokens to add to the vocabulary, as strings or with options, for causal models. With adapters only their rows of
    embedding and head are trained in addition, with method full all rows."""


class Full(Section):
    """Every weight is trained."""

    kind: Literal["full"]


class LastLayers(Section):
    """The last `num_layers` blocks, the final norm and the head are trained; all earlier layers are frozen."""

    kind: Literal["last_layers"]
    num_layers: PositiveInt = 2
    """Number of blocks to train, counted from the end."""
    train_head: bool | None = None
    """Train the output head. Null: yes, unless the head is tied to the input embedding."""


class Lora(Section):
    """Low-rank adapters on frozen weights (Hu et al. 2021, arXiv:2106.09685), through peft."""

    kind: Literal["lora"]
    lora_rank: PositiveInt = 16
    """Rank r of the two adapter matrices."""
    lora_alpha: PositiveFloat = 32
    """The adapter's output is scaled by lora_alpha / lora_rank."""
    lora_dropout: Fraction = 0.0
    """Dropout probability of the adapter's input."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the linear layers and embeddings that get an adapter, or ends of their paths, as in peft; all-linear:
    every linear layer except the head."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_rank) instead (rank-stabilized LoRA, arXiv:2312.03732)."""
    use_dora: bool = False
    """Train magnitude and direction of the weights separately (DoRA, arXiv:2402.09353)."""
    start_from: str | None = None
    """Exported adapter of an earlier run to continue training from: a directory, with the same base, rank, scaling and
    modules. Null: a new adapter. Paths: relative to the recipe, then to the working directory."""


class QLora(Lora):
    """LoRA on frozen 4-bit weights, NF4 (Dettmers et al. 2023, arXiv:2305.14314), through bitsandbytes."""

    kind: Literal["qlora"]  # pyright: ignore[reportIncompatibleVariableOverride]
    double_quantization: bool = True
    """Quantize the scales of the 4-bit blocks to 8 bits: 4.13 bits per weight instead of 4.5."""


Method = Annotated[Full | LastLayers | Lora | QLora, Field(discriminator="kind")]


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


class RouterLoss(Section):
    """The load-balancing loss of mixture-of-experts models, as transformers defines it."""

    coefficient: NonNegativeFloat | None = None
    """Its weight in the loss. Null: the model configuration's router_aux_loss_coef, or 0. A weight above 0 is an error
    for models without experts, such as all those of the tasks classification and seq2seq."""
    scope: Literal["micro_batch", "global"] = "micro_batch"
    """Which tokens the share of each expert is computed from: those of a micro-batch on all ranks, or of the whole
    optimizer step. global is the loss of one large batch, and costs one more forward pass without gradient."""


class Optimization(Section):
    """Optimizer, learning rate schedule, batch sizes and regularization."""

    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """adamw: fp32 moments. adamw_8bit: 8-bit moments (arXiv:2110.02861). paged_adamw_8bit: 8-bit moments that can be
    paged to CPU memory."""
    learning_rate: NonNegativeFloat = 2.0e-4
    """Peak learning rate, reached after the warmup."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate decay after the warmup."""
    warmup_fraction: Fraction = 0.03
    """Fraction of all steps used for linear warmup."""
    min_learning_rate_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Final learning rate, as a fraction of learning_rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (AdamW) of matrices; norms and biases are not decayed."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's coefficients of the running averages of the gradient and of its square."""
    eps: PositiveFloat = 1.0e-8
    """Added to AdamW's denominator for numerical stability."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Maximum gradient norm, for gradient clipping; null: no clipping."""
    global_batch_size: PositiveInt = 8
    """Sequences per optimizer step, over all ranks and accumulation steps."""
    micro_batch_size: PositiveInt | None = None
    """Sequences per rank and forward pass. Null: chosen by the plan from the available memory. Halved if memory runs
    out."""
    epochs: PositiveInt = 1
    """Number of passes over the training rows."""
    max_steps: PositiveInt | None = None
    """Maximum number of optimizer steps; the run may end within an epoch."""
    dropout: Fraction | None = None
    """Probability of the model's dropout (attention, residual); null: the model configuration's value."""
    neftune_alpha: PositiveFloat | None = None
    """NEFTune noise on the embeddings in training (Jain et al. 2023, arXiv:2310.05914), typically 5; null: none."""
    label_smoothing: Fraction = 0.0
    """Probability mass of the target that is spread over the vocabulary."""
    z_loss: NonNegativeFloat = 0.0
    """Coefficient of log(sum of exp(logits))^2, added to each token's loss in training to keep logits small (PaLM,
    arXiv:2204.02311: 1.0e-4). Causal tasks only; not part of the evaluation loss."""
    router_loss: RouterLoss = RouterLoss()
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass. Null: only if they do not fit in memory."""
    offload_activations: bool = False
    """Keep what the backward pass needs in pinned CPU memory instead of GPU memory; with gradient_checkpointing, the
    inputs of blocks. Saves memory with long rows, and costs the time of the copies."""
    max_skipped_steps: NonNegativeInt = 3
    """Consecutive steps with a non-finite gradient that are skipped before the run fails."""


class Resources(Section):
    """The training processes and their placement, on one machine or on a cluster."""

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Number of processes, one per GPU; on a CPU they share its cores. [min, max]: as many as fit, and fewer after a
    machine is lost. Null: one per GPU, or one per machine without GPUs."""
    nodes: PositiveInt | None = None
    """Number of machines; more than one requires a cluster. Null: all machines of the cluster."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs to use on each machine; 0 trains on the CPU. Null: all visible GPUs."""
    max_restarts: NonNegativeInt | None = None
    """Maximum number of restarts from the newest checkpoint after processes are killed or a machine is lost.
    Null: 3 with several processes, 0 with one."""


class Parallelism(Section):
    """Sharding of training state across processes: ZeRO (arXiv:1910.02054), through DeepSpeed."""

    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """0: nothing is sharded; 1: optimizer state; 2: also gradients; 3: also weights. auto: the lowest that fits."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where to keep optimizer state and fp32 master weights; none: on the compute device."""
    offload_params: Literal["none", "cpu", "nvme"] = "none"
    """Where to keep weights that are not in use (zero_stage 3 only); none: on the compute device."""
    nvme_path: str | None = None
    """Directory for nvme offloading, on a fast local disk of every node."""
    deepspeed_config: str | None = None
    """A DeepSpeed configuration file (JSON) for options without a recipe key. Values that contradict the recipe are
    errors."""


class Checkpoint(Section):
    """When checkpoints are written, how many are kept, and where they are mirrored."""

    every_steps: PositiveInt | None = None
    """Optimizer steps between checkpoints; null: once per epoch. A final checkpoint is always written."""
    keep_last: PositiveInt = 3
    """Number of newest checkpoints to keep; the best checkpoint is also kept."""
    background: bool | None = None
    """Write checkpoints asynchronously, from a copy in memory (12 bytes per trained weight). Null: if memory allows."""
    mirror: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]+://")] | None = None
    """A URL (s3://bucket/folder, file:///disk, ...) that every checkpoint is also copied to, under the name of the run
    directory. A run without local checkpoints resumes from the newest complete checkpoint there."""


class EarlyStopping(Section):
    """Stop when the validation loss no longer improves."""

    patience: PositiveInt = 3
    """Consecutive evaluations without improvement after which the run stops and exports its best checkpoint."""
    min_delta: NonNegativeFloat = 0.0
    """Minimum decrease of the validation loss (nats per token) that counts as an improvement."""


class Evaluation(Section):
    """Evaluation during training, and the answers and baselines of the report."""

    every_steps: PositiveInt | None = None
    """Optimizer steps between evaluations on the validation rows; null: only before the first and after the last."""
    early_stopping: EarlyStopping | None = None
    num_answers: NonNegativeInt = 3
    """Number of validation prompts that the model answers before and after training, for the report."""
    max_new_tokens: PositiveInt = 64
    """Maximum number of tokens of such an answer."""
    retain: str | None = None
    """A file (or pattern) of general rows that are scored before and after training, to measure forgetting.
    Paths: relative to the recipe, then to the working directory."""
    few_shot: NonNegativeInt = 0
    """Number of training rows in the prompt of a few-shot baseline: the untrained model on the validation rows."""


class Export(Section):
    """The form of the exported model."""

    form: Literal["auto", "adapter", "merged"] = "auto"
    """adapter: the adapter only; merged: the full model. auto: the adapter, if the method trains one and the recipe
    adds no tokens."""


class TensorBoard(Section):
    """TensorBoard event files (package tensorboard)."""

    kind: Literal["tensorboard"]
    directory: Annotated[str, Field(min_length=1)] | None = None
    """Log directory that holds a folder per run, named after the run directory, for `tensorboard --logdir`; relative to
    the working directory. Null: `tensorboard/` in the run directory."""


def _without_credentials(value: object) -> object:
    """Refuse user names and passwords in a URI: the plan and the tracker's configuration would contain them."""
    if isinstance(value, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*@", value):
        raise ValueError(
            "the URI contains credentials, which the run directory would show; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI, in the environment"
        )
    return value


class Artifacts(Section):
    """What a tracker stores in addition to metrics and configuration."""

    log_report: bool = True
    """Store the report and the summary of the receipts. The report contains sample answers and rejected rows."""
    log_model: bool | None = None
    """Store the export. Null: only if it is an adapter."""


class MLflow(Artifacts):
    """An MLflow tracking server or database (package mlflow or mlflow-skinny)."""

    kind: Literal["mlflow"]
    tracking_uri: Annotated[str, Field(min_length=1), BeforeValidator(_without_credentials)] | None = None
    """`https://...`, `sqlite:///file.db`, ... Null: the environment variable MLFLOW_TRACKING_URI, or `mlflow.db` in the
    working directory, as in MLflow."""
    experiment: Annotated[str, Field(min_length=1)] | None = None
    """Name of the experiment, created if it does not exist. Null: the environment variable MLFLOW_EXPERIMENT_NAME, or
    `tunesmith`."""
    run_name: Annotated[str, Field(min_length=1)] | None = None
    """Null: the name of the recipe."""
    tags: dict[str, str] = {}
    """Tags of the run."""


class Wandb(Artifacts):
    """Weights & Biases (package wandb). The API key is read from WANDB_API_KEY or the login of `wandb login`."""

    kind: Literal["wandb"]
    project: Annotated[str, Field(min_length=1)] | None = None
    """Null: the environment variable WANDB_PROJECT, or `tunesmith`."""
    entity: Annotated[str, Field(min_length=1)] | None = None
    """User or team. Null: the environment variable WANDB_ENTITY, or the default of the account."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """Name of the run. Null: the name of the recipe."""
    group: Annotated[str, Field(min_length=1)] | None = None
    """Group of runs. Null: the environment variable WANDB_RUN_GROUP, if set."""
    tags: list[str] = []
    """Tags of the run."""
    mode: Literal["online", "offline"] | None = None
    """offline: only write files, for `wandb sync`. Null: the environment variable WANDB_MODE, or online."""
    directory: Annotated[str, Field(min_length=1)] | None = None
    """Parent of the `wandb` folder; relative to the working directory. Null: the environment variable WANDB_DIR, or the
    run directory."""


class Trackio(Artifacts):
    """Trackio (package trackio): a local database, or a Hugging Face Space. A token for a Space is read from HF_TOKEN
    or the login of `hf auth login`."""

    kind: Literal["trackio"]
    project: Annotated[str, Field(min_length=1)] | None = None
    """Null: the environment variable TRACKIO_PROJECT, or `tunesmith`."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """Name of the run, followed by its ID. Null: the name of the recipe."""
    group: Annotated[str, Field(min_length=1)] | None = None
    """Group of runs."""
    space_id: Annotated[str, Field(min_length=1)] | None = None
    """A Hugging Face Space, `organization/name`. Null: the environment variable TRACKIO_SPACE_ID, or the local
    database, in the directory TRACKIO_DIR."""


def _tracker_as_written(value: object) -> object:
    """Read a tracker without options, which may be written as its name."""
    return {"kind": value} if isinstance(value, str) else value


Tracker = Annotated[
    TensorBoard | MLflow | Wandb | Trackio, Field(discriminator="kind"), BeforeValidator(_tracker_as_written)
]


def _each_tracker_once(trackers: list[Tracker]) -> list[Tracker]:
    kinds = [tracker.kind for tracker in trackers]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise ValueError(f"{twice[0]} is listed more than once; remove all but one entry")
    return trackers


Operation = Literal[
    "linear_cross_entropy",
    "cross_entropy",
    "rms_norm",
    "add_rms_norm",
    "layer_norm",
    "rope",
    "rope_packed",
    "swiglu",
    "swiglu_packed",
    "geglu",
    "lora_linear",
    "norm_lora_linears",
    "gated_lora_linear",
    "nf4_dequantise",
    "trained_linear",
    "trained_embedding",
    "adamw",
    "adamw_8bit",
]


def _off_as_written(value: object) -> object:
    """Restore `off`, which YAML 1.1 reads as false."""
    return "off" if value is False else value


class Recipe(Section):
    """One run, from rows to an exported model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name of the run directory; letters, digits, dot, dash and underscore."""
    model: Model
    task: TaskName = "chat"
    """chat: messages, training on the assistant's; completion: prompt and completion; text: plain text, every token;
    classification: text and labels; seq2seq: source and target; preference: a chosen and a rejected answer; kto:
    answers rated good or bad."""
    method: Method
    data: Data
    classification: Classification = Classification()
    seq2seq: Seq2Seq = Seq2Seq()
    preference: Preference = Preference()
    kto: Kto = Kto()
    optimization: Optimization = Optimization()
    resources: Resources = Resources()
    parallelism: Parallelism = Parallelism()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
    tracking: Annotated[list[Tracker], AfterValidator(_each_tracker_once)] = []
    """Experiment trackers that receive the metrics, the configuration and the results, as names or with options, such
    as `[tensorboard, {kind: wandb, project: mine}]`; see docs/tracking.md. They may be changed when a run is
    resumed."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of matrix products and frozen weights; trained weights and optimizer state are always fp32. auto: bf16
    on a GPU with bf16 tensor cores, and on a CPU whose matrix products are measured to be at least 1.25 times as fast
    in bf16; fp16, with dynamic loss scaling, on GPUs that have only that (T4, V100); otherwise fp32."""
    deterministic: Annotated[Literal["auto", "strict", "off"], BeforeValidator(_off_as_written)] = "auto"
    """Whether a resumed run is bit-identical to an uninterrupted one. auto: wherever every operation has a
    deterministic form, the plan says so; strict: the run fails at the first operation without one; off: the fastest
    operations."""
    kernels: Annotated[Literal["auto", "off"] | list[Operation], BeforeValidator(_off_as_written)] = "auto"
    """Optimized kernels. auto: those that suit the device; off: plain torch; or a list of kernels that may be used.
    Each is compared with plain torch before the first step, and disabled with a warning if the results differ."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Random seed of sample order, dropout, adapters, noise and new heads."""
    hang_timeout_s: Annotated[float, Field(ge=2.0)] = 300.0
    """Seconds without a heartbeat from a process, or without progress, after which the run fails as hung and reports
    rank, stage and stack. The limit is six times as long for loading, saving and the first step, and at least ten times
    the slowest progress so far."""
    stage_timeout_s: Annotated[float, Field(ge=2.0)] = 86400.0
    """Seconds that one stage of a process (loading, an evaluation, a checkpoint, the export) may take in total, even
    with progress. The default, a day, is more than evaluations, uploads and exports of the largest models take."""

    @property
    def task_facts(self) -> Task:
        return TASKS[self.task]

    @property
    def task_section(self) -> Section | None:
        """The options of the recipe's task; None if it has none."""
        name = self.task_facts.section
        return None if name is None else getattr(self, name)

    @property
    def packs(self) -> bool:
        """Whether rows are packed; tasks that count rows never pack."""
        return self.data.packing and self.task_facts.packs

    @property
    def needs_reference(self) -> bool:
        """Whether the loss uses a reference model, the model before training."""
        section = self.task_section
        return self.task_facts.may_need_reference and section is not None and section.uses_reference
