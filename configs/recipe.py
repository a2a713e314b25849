"""What the user wants: the recipe's schema. Units, choices and defaults of every field stand here and nowhere else."""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from tunesmith.configs.tasks import TASKS, Task, TaskName

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values are not converted between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @property
    def uses_reference(self) -> bool:
        """Of a task's options: whether the loss that they choose compares with the untrained model."""
        return True


class Model(Section):
    base: Annotated[str, Field(min_length=1)]
    """A Hugging Face directory, a GGUF file, or a hub id (`organisation/name`).
    Paths: relative to the recipe, then to the working directory."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; a commit makes the run repeatable."""
    chat_template: str | None = None
    """A file with a Jinja chat template that replaces the model's own."""


class Full(Section):
    """Every weight is trained."""

    kind: Literal["full"]


class LastLayers(Section):
    """The last `num_layers` blocks, the final norm and the head are trained; all before them is frozen."""

    kind: Literal["last_layers"]
    num_layers: PositiveInt = 2
    """Blocks, counted from the end."""
    train_head: bool | None = None
    """Train the output head. Null: yes, unless the head shares its weights with the input embedding."""


class Lora(Section):
    """Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685), through peft."""

    kind: Literal["lora"]
    lora_rank: PositiveInt = 16
    """Rank r of the two adapter matrices."""
    lora_alpha: PositiveFloat = 32
    """The adapter's output is scaled by lora_alpha / lora_rank."""
    lora_dropout: Fraction = 0.0
    """Probability that an adapter's input is dropped in training."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the modules that get an adapter, in peft's words; all-linear: every linear layer but the head."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_rank) instead, so that a high rank learns as fast (arXiv:2312.03732)."""
    use_dora: bool = False
    """Train the length of each output's weights apart from their direction (DoRA, arXiv:2402.09353)."""
    start_from: str | None = None
    """An earlier run's exported adapter that is trained further: a directory, of the same base, rank, scaling and
    modules. Null: a fresh one. Paths: relative to the recipe, then to the working directory."""


class QLora(Lora):
    """LoRA beside frozen weights kept in 4 bits, NF4 (Dettmers et al. 2023, arXiv:2305.14314), through bitsandbytes."""

    kind: Literal["qlora"]  # pyright: ignore[reportIncompatibleVariableOverride]
    double_quantization: bool = True
    """Keep the scales of the 4-bit blocks in 8 bits: 4.13 bits a weight instead of 4.5."""


Method = Annotated[Full | LastLayers | Lora | QLora, Field(discriminator="kind")]


class Deidentify(Section):
    """What tells who a row is about is replaced by something alike, before anything is tokenised, kept or logged."""

    kinds: Annotated[list[Literal["person", "date", "phone", "email", "url", "number"]], Field(min_length=1)] = [
        *("person", "date", "phone", "email", "url", "number"),
    ]
    """What is looked for; number: of records, insurances, cards and accounts."""
    skip: list[str] = []
    """Keys of a row whose values are left as they are, such as that of the label."""
    spacy_model: str | None = None
    """An installed spaCy model that is asked for names as well; null: names are found by context and by lists."""
    seed: NonNegativeInt = 0
    """Of the surrogates: another one gives others."""


class Data(Section):
    train: Annotated[list[str], Field(min_length=1)]
    """Files (.jsonl, .json, .csv, .parquet, .txt), glob patterns; or URLs (s3://, https://, ...), fetched to the cache.
    Paths: relative to the recipe, then to the working directory."""
    validation: Fraction | list[str] = 0.0
    """A share of the training rows, chosen by content so that equal rows fall on one side; or files of their own."""
    max_seq_len: Annotated[int, Field(ge=8)] = 1024
    """Tokens a sequence at most, special tokens included."""
    too_long: Literal["error", "truncate", "drop", "split"] = "error"
    """What happens to a row longer than max_seq_len: it is refused, cut at the end, left out, or
    (text only) cut into several."""
    packing: bool = True
    """Several rows share one sequence of max_seq_len tokens; they never see each other.
    For the tasks chat, completion and text; rows of the others are counted one by one."""
    max_rejects: NonNegativeInt = 0
    """Refused rows that are tolerated; one more ends the run before it starts.
    Every one is written to receipts/rejects.jsonl."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Rows equal to an earlier one: trained again, or left out. The receipts tell of them in either case."""
    deidentify: Deidentify | None = None
    """Null: rows are trained as they are. `{}`: without names, dates, telephone and other numbers, see docs."""


class Classification(Section):
    """For task classification: rows of a text and its label or labels."""

    kind: Literal["single_label", "binary", "multi_label"] = "single_label"
    """single_label: one of several, softmax. binary: one of two, one logit. multi_label: any number of several."""
    text_column: Annotated[str, Field(min_length=1)] = "text"
    """Key of a row under which its text stands."""
    label_column: Annotated[str, Field(min_length=1)] = "label"
    """Key of the label: a text, a whole number, true or false; for multi_label a list of them, which may be empty."""
    labels: Annotated[list[str], Field(min_length=1)] | None = None
    """Names in the order of their numbers; of a binary task the second one is what is looked for.
    Null: as found in the training files, sorted."""
    class_weights: Literal["balanced"] | list[PositiveFloat] | None = None
    """Weight of each label's loss, in the order of `labels`; for binary and multi_label of its positive rows.
    balanced: from the training rows, so that every label (or positive and negative rows of one) counts alike."""


class Seq2Seq(Section):
    """For task seq2seq: rows of a source and a target text, for encoder-decoder models."""

    source_column: Annotated[str, Field(min_length=1)] = "source"
    """Key of a row under which the text stands that the encoder reads."""
    target_column: Annotated[str, Field(min_length=1)] = "target"
    """Key of the text that the decoder is to write."""
    prefix: str = ""
    """Put before every source, such as `translate English to German: `; say it in use as well."""


class Preference(Section):
    """For task preference: pairs of a better and a worse answer."""

    loss: Literal["dpo", "ipo", "orpo"] = "dpo"
    """dpo (arXiv:2305.18290) and ipo (arXiv:2310.12036) compare with the base model; orpo (arXiv:2403.07691) does not,
    and learns the better answer as well."""
    beta: PositiveFloat = 0.1
    """dpo: how strongly the model is held to the base model. ipo: its tau. orpo: weight of the odds ratio."""

    @property
    def uses_reference(self) -> bool:
        return self.loss != "orpo"


class Kto(Section):
    """For task kto: answers that are good or bad, each by itself (KTO: Ethayarajh et al. 2024, arXiv:2402.01306)."""

    beta: PositiveFloat = 0.1
    """How strongly the model is held to the base model: higher stays closer."""
    desirable_weight: NonNegativeFloat = 1.0
    """Weight of the loss of good answers."""
    undesirable_weight: NonNegativeFloat = 1.0
    """Weight of the loss of bad answers. Where one kind is rarer, raise its weight until weight times number of rows is
    about the same for both, up to a third more for good ones."""


class Optimization(Section):
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """adamw: moments in fp32. adamw_8bit: in 8 bits (arXiv:2110.02861). paged: these may move to the CPU's memory."""
    learning_rate: NonNegativeFloat = 2.0e-4
    """The highest learning rate, reached after the warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_fraction: Fraction = 0.03
    """Share of all steps in which the learning rate rises linearly."""
    min_learning_rate_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """What the learning rate ends at, as a share of learning_rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay (AdamW) of matrices; never of norms and biases."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1.0e-8
    max_grad_norm: PositiveFloat | None = 1.0
    """The gradient is scaled down to this norm; null: never."""
    global_batch_size: PositiveInt = 8
    """Sequences an optimizer step, over all ranks and accumulation steps."""
    micro_batch_size: PositiveInt | None = None
    """Sequences a rank and forward pass. Null: chosen by the plan from the memory at hand."""
    epochs: PositiveInt = 1
    """Times that every row is trained."""
    max_steps: PositiveInt | None = None
    """Ends the run after this many optimizer steps, also inside an epoch."""
    dropout: Fraction | None = None
    """Probability for the model's own dropout (attention, residual); null: as the model's configuration says."""
    neftune_alpha: PositiveFloat | None = None
    """Noise on the embeddings in training (Jain et al. 2023, arXiv:2310.05914); 5 is usual; null: none."""
    label_smoothing: Fraction = 0.0
    """Share of the target's probability that is spread over the vocabulary."""
    z_loss: NonNegativeFloat = 0.0
    """Factor of log(sum of exp(logits))^2, added to a token's loss in training so that logits stay small (PaLM,
    arXiv:2204.02311: 1.0e-4). Causal tasks only; evaluation is without it."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass. Null: only where memory does not allow otherwise."""
    max_skipped_steps: NonNegativeInt = 3
    """Steps in a row whose gradient is not finite that are skipped before the run ends as failed."""


class Resources(Section):
    """The processes that train, and where they stand: on one machine, or on the machines of a cluster."""

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Processes, one on each GPU; on a CPU they share its cores. [min, max]: as many as there is room for, fewer when a
    machine is lost. Null: one on each GPU, or one on each machine without any."""
    nodes: PositiveInt | None = None
    """Machines that they are spread over; more than one needs a cluster. Null: as many as the cluster has."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs that are used of each machine; 0 trains on the CPU. Null: all that can be seen."""
    max_restarts: NonNegativeInt | None = None
    """Times that processes which were killed, or lost with their machine, are started again from the newest checkpoint.
    Null: 3 where there are several, none for a single one."""


class Parallelism(Section):
    """How the processes of a run divide the model among them: ZeRO (arXiv:1910.02054), through DeepSpeed."""

    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """Divided are: 0 nothing; 1 the optimizer's state; 2 also gradients; 3 also weights. auto: the lowest that fits."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where the optimizer's state lives, and with it the fp32 masters; none: on the device that computes."""
    offload_params: Literal["none", "cpu", "nvme"] = "none"
    """Where weights live while they are not needed (zero_stage 3 only); none: on the device that computes."""
    nvme_path: str | None = None
    """A directory on a fast local disk, on every node, for what is offloaded to nvme."""
    deepspeed_config: str | None = None
    """A DeepSpeed configuration (JSON) for what this recipe has no key for. What contradicts the recipe is refused."""


class Checkpoint(Section):
    every_steps: PositiveInt | None = None
    """Optimizer steps between checkpoints; null: once an epoch. One is always written at the end."""
    keep_last: PositiveInt = 3
    """Newest checkpoints that stay; the best one stays as well."""
    background: bool | None = None
    """Write a copy in memory (12 bytes a trained weight) while training goes on. Null: where memory is left for it."""
    mirror: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]+://")] | None = None
    """A URL (s3://bucket/folder, file:///disk, ...) that every checkpoint is sent to as well, below the name of the run
    directory; a run whose own disk is new goes on from the newest whole one there."""


class EarlyStopping(Section):
    patience: PositiveInt = 3
    """Evaluations in a row without improvement after which the run ends and exports its best checkpoint."""
    min_delta: NonNegativeFloat = 0.0
    """Improvement of the validation loss (nats per token) below which it does not count."""


class Evaluation(Section):
    every_steps: PositiveInt | None = None
    """Optimizer steps between evaluations of the validation rows; null: before the first and after the last only."""
    early_stopping: EarlyStopping | None = None
    num_answers: NonNegativeInt = 3
    """Validation prompts that the model answers before and after, for the report."""
    max_new_tokens: PositiveInt = 64
    """Tokens of such an answer at most."""
    retain: str | None = None
    """A file of general rows (or a pattern) that are scored before and after: what the model has forgotten.
    Paths: relative to the recipe, then to the working directory."""
    few_shot: NonNegativeInt = 0
    """Training rows in the prompt of the untrained model, on the validation rows: what prompting would have done."""


class Export(Section):
    form: Literal["auto", "adapter", "merged"] = "auto"
    """adapter: the adapter alone; merged: the whole model in plain form. auto: the adapter where there is one."""


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
    """YAML 1.1 reads a bare `off` as false."""
    return "off" if value is False else value


class Recipe(Section):
    """One run, from rows to exported model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Names the run directory; letters, digits, dot, dash and underscore."""
    model: Model
    task: TaskName = "chat"
    """chat: messages, trained on the assistant's; completion: prompt and completion; text: every token;
    classification: text and labels; seq2seq: source and target; preference: a better and a worse answer; kto: answers
    that are good or bad."""
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
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products and of frozen weights; trained weights and optimizer state are always fp32."""
    kernels: Annotated[Literal["auto", "off"] | list[Operation], BeforeValidator(_off_as_written)] = "auto"
    """Fast forms of operations. auto: what fits the device; off: plain torch; or a list of those that may be used.
    Each is compared with plain torch before the first step, and switched off with a warning where it differs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of sample order, dropout, adapters, noise and new heads."""
    hang_timeout_s: Annotated[float, Field(ge=2.0)] = 300.0
    """Seconds without a sign of life from a process, or without progress inside a step, after which the run ends as
    hung and names rank and stack. Progress may always take ten times as long as it has taken before."""

    @property
    def task_facts(self) -> Task:
        return TASKS[self.task]

    @property
    def task_section(self) -> Section | None:
        """The options of the recipe's task; None where it has none."""
        name = self.task_facts.section
        return None if name is None else getattr(self, name)

    @property
    def packs(self) -> bool:
        """Whether rows share sequences: what a task counts by row is not packed."""
        return self.data.packing and self.task_facts.packs

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the model as it was before training."""
        section = self.task_section
        return self.task_facts.may_need_reference and section is not None and section.uses_reference
