"""The resolved plan: every decision of a run with its reason. Written once by the launcher, read by every worker."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tunesmith.configs.recipe import Recipe

SCHEMA = 1


class PlanSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Choice(PlanSection):
    """One decision of the plan, for display: the value, the reason, and its cost in bytes if known."""

    key: str
    value: Any
    reason: str
    num_bytes: int | None = None


class ProofComparison(PlanSection):
    """One comparison with the forward of transformers' own class."""

    name: str
    difference: float | None
    """Relative; null: not finite, or it could not be computed."""
    limit: float
    holds: bool
    reason: str | None = None
    """Why it could not be computed."""


class ModelProof(PlanSection):
    """How a causal model can be trained, from comparisons with the forward of transformers' own class."""

    packing: bool
    """Packed documents give the results of each document alone; otherwise rows go through the model unpacked, as
    padded batches of similar lengths, with the model's own attention."""
    padding: bool = True
    """Unpacked rows of similar lengths share a batch, with padding; otherwise only rows of the same length."""
    loss: Literal["fused", "model"]
    """fused: backbone, then head and loss in chunks; model: loss of the logits of the class's own forward."""
    cached_generation: bool
    """Generation with the cache gives the results of the forward without it."""
    attention: str
    """The attention implementation of the class's own forward."""
    comparisons: list[ProofComparison]
    cut: list[str] = []
    """What was left out of the model for the comparisons; empty: nothing."""


class AdapterTarget(PlanSection):
    """Modules of one name and shape that get an adapter."""

    name: str
    """Last part of the path; of experts, the last two."""
    shape: list[int]
    """Of the weight; of experts [experts, ...]."""
    count: int
    num_params: int
    """Trained values of all their adapters."""


class AddedTokens(PlanSection):
    """The tokens that model.add_tokens adds. The model's directory is a copy of the base model with these tokens in the
    tokenizer, and rows for them in embedding and head."""

    base_directory: str
    """Absolute path of the base model without the tokens."""
    base_vocab_size: int
    """Rows of its embedding. The copy has more if the base model had no free rows."""
    tokens: list[str]
    """The added tokens."""
    rows: list[int]
    """Rows of embedding and head that were initialized, ascending: those of the tokens, and of other tokens of the
    tokenizer that the base model had no rows for."""


class AdapterTokenizer(PlanSection):
    """What the adapter in model.base brings for its base model besides weights."""

    brought: list[str]
    """"tokenizer", "chat template" or both: those of the base model are other ones."""
    base_directory: str | None = None
    """Absolute path of the base model as published, of which the model's directory is a copy with these files; null:
    the adapter was merged."""
    base_fingerprint: str | None = None
    """Fingerprint of the base model as published; null: the adapter was merged."""


class QuantizedWeights(PlanSection):
    """The format of a base model whose published weights are quantized."""

    kind: Literal["fp8", "mxfp4", "bitsandbytes"]
    """fp8 and mxfp4 are dequantized while loading; bitsandbytes (4 bits) is kept as it is, for method.kind: qlora."""
    name: str
    """For display, such as "FP8 in blocks of 128 x 128"."""
    block: list[int] | None = None
    """Rows and columns that share a scale (fp8); null: a scale per output channel or tensor, or another kind."""


class CarriedWeights(PlanSection):
    """The tensors of a multimodal checkpoint outside its text model, which merged and full exports carry through."""

    class_name: str
    """The published class, whose text model is trained."""
    num_tensors: int
    num_bytes: int
    modules: list[str]
    """The modules that they belong to, such as vision_tower."""


class ModelFacts(PlanSection):
    """The base model on disk."""

    directory: str
    """Absolute path of a local Hugging Face directory. Hub ids and GGUF files are converted to one before planning."""
    source: str
    """The model as named in the recipe."""
    chat_template: str | None = None
    """Absolute path of a template that overrides the model's; null: the model's template."""
    adapter: str | None = None
    """Absolute directory of the adapter that training continues from; null: a new adapter, or none."""
    adapter_sha256: str | None = None
    """SHA-256 of that adapter's weights."""
    fingerprint: str
    """SHA-256 over the names, sizes and content hashes of config, weights and tokenizer files."""
    model_type: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_params: int
    num_trained_params: int
    """Estimated from the configuration; the worker counts them, and fails if there are none."""
    tied_embeddings: bool
    head_size: int | None = None
    """Values per attention head; null: unknown."""
    key_value_size: int | None = None
    """Values per token and layer of the keys, and of the values; null: unknown."""
    feed_forward_size: int | None = None
    """Width of the feed-forward layers; null: unknown."""
    max_positions: int | None = None
    """Maximum sequence length of the model, in tokens; null: unlimited or unknown."""
    trained_positions: int | None = None
    """Sequence length that the model's configuration states, in tokens, with rotary scaling; null: unknown."""
    adapters: list[AdapterTarget] = []
    """What gets an adapter; empty: nothing, or in the plan of an earlier version."""
    num_active_params: int | None = None
    """Weights that compute one token of a mixture-of-experts model; null: all, or unknown."""
    num_experts: int | None = None
    """Routed experts per layer; null: the model has none."""
    num_expert_params: int | None = None
    """Weights of all routed experts; null: the model has none."""
    experts_quantizable: bool | None = None
    """Whether the experts can be held in 4 bits; null: unknown, or no experts."""
    num_experts_per_token: int | None = None
    """Routed experts that compute one token; null: unknown, or no experts."""
    router_loss_coefficient: float | None = None
    """Weight of the router loss that the model's configuration states; null: none."""
    pair_separator: int | None = None
    """Token between the texts of a pair, after which the token type is 1; null: the model has no token types."""
    proof: ModelProof | None = None
    """Causal models only. Null: packed and fused, if the worker's comparison before the first step agrees; otherwise
    what it finds."""
    quantized: QuantizedWeights | None = None
    """How the published weights are quantized; null: they are not. Numbers and sizes are those of plain weights."""
    added: AddedTokens | None = None
    """The tokens that the recipe adds to the vocabulary; null: none."""
    adapter_tokenizer: AdapterTokenizer | None = None
    """Null: the tokenizer and the chat template are those of the base model."""
    carried: CarriedWeights | None = None
    """Multimodal checkpoints only: what is not trained. All other fields describe the text model."""

    @property
    def base_directory(self) -> str:
        """The base model as published, without added tokens and with its own tokenizer."""
        if self.added is not None:
            return self.added.base_directory
        return (self.adapter_tokenizer and self.adapter_tokenizer.base_directory) or self.directory

    @property
    def new_rows(self) -> list[int]:
        """Rows of embedding and head that adapters train in addition, ascending."""
        return [] if self.added is None else self.added.rows


class SplitFacts(PlanSection):
    """One prepared split. Samples are the units of a batch: rows, or packed sequences of rows."""

    index: str
    """Absolute directory of the token index."""
    num_rows: int
    num_samples: int
    num_tokens: int
    supervised_tokens: int
    longest_tokens: int


class DataSetFacts(PlanSection):
    """A data set of a mixture, or named validation files. Its training samples are consecutive in the index."""

    name: str
    row_ranges: list[tuple[int, int]]
    """Row ids of its files, as [first, stop)."""
    num_rows: int = 0
    """Training rows."""
    first_sample: int = 0
    num_samples: int = 0
    """Training samples: rows, or packed sequences of its rows."""
    num_tokens: int = 0
    supervised_tokens: int = 0
    validation_rows: int = 0
    samples_per_epoch: int = 0
    """Its share is this divided by the samples of an epoch; 0 if it is not trained."""


class DataFacts(PlanSection):
    fingerprint: str
    """Hash of everything the token index depends on: files, tokenizer, template, options."""
    train: SplitFacts
    validation: SplitFacts | None
    num_rejected: int
    num_dropped: int
    num_truncated: int
    num_duplicates: int
    num_unselected: int = 0
    """Rows beyond max_rows of their data set."""
    num_special: int = 0
    """Rows with special tokens in their content."""
    omitted: dict[str, int] | None = None
    """Rows of which the chat template does not show everything, by the kind of value: thinking of earlier turns, and
    others with data.omitted_fields: keep. Null: prepared by a version that did not check this."""
    rendered_on: str | None = None
    """The date (YYYY-MM-DD) that the chat template prints, in the rows and whenever the run renders a conversation;
    null: it prints none."""
    tokenizer_not_compared: str | None = None
    """A warning, if the tokens could not be compared with those of the installed transformers; null: they are equal."""
    retain: SplitFacts | None = None
    """Rows of evaluation.retain, scored before and after training."""
    labels: list[str] | None = None
    """Classification only: label names by class index; for a binary task the negative label first."""
    label_counts: list[int] | None = None
    """Training rows per label, in the same order."""
    datasets: list[DataSetFacts] = []
    """The data sets of a mixture in the order of the recipe, then other named validation files. Empty: no names."""
    epoch_samples: int | None = None
    """Samples of an epoch of a mixture; null: no mixture, an epoch has every training sample once."""

    @property
    def mixed(self) -> list[DataSetFacts]:
        """The data sets that are trained on; empty without a mixture."""
        return [each for each in self.datasets if each.samples_per_epoch]

    @property
    def samples_per_epoch(self) -> int:
        return self.train.num_samples if self.epoch_samples is None else self.epoch_samples

    def samples_by_dataset(self, samples: list[int]) -> dict[str, int] | None:
        """Return how many of some training samples each data set has; None without a mixture."""
        if self.epoch_samples is None:
            return None
        ends = [(each.name, each.first_sample, each.first_sample + each.num_samples) for each in self.mixed]
        return {name: sum(first <= sample < stop for sample in samples) for name, first, stop in ends}


class BatchFacts(PlanSection):
    micro_batch_size: int
    """Sequences per rank and forward pass."""
    passes_per_sequence: int = 1
    """Forward passes over which the documents of a packed sequence are distributed. Above 1 only after memory ran out
    with one sequence per pass."""
    grad_accum_steps: int
    """Maximum number of forward passes per rank and step."""
    steps_per_epoch: float
    total_steps: int
    warmup_steps: int
    checkpoint_every_steps: int
    evaluation_every_steps: int | None
    """None: only before the first step and after the last one."""


class ComputeFacts(PlanSection):
    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "bf16", "fp16"]
    deterministic: Literal["strict", "warn", "off"] = "warn"
    """strict: operations without a deterministic form are errors; warn: deterministic where there is such a form."""
    gradient_checkpointing: bool
    world_size: int
    """Number of training processes."""
    min_world_size: int = 1
    """The run does not continue with fewer processes after a machine is lost. Memory and micro-batch size are planned
    for this number."""
    nodes: int = 1
    threads_per_rank: int
    memory_bytes: int
    """Memory limit of a rank."""
    estimated_peak_bytes: int
    """Expected peak memory of a rank."""
    checkpoint_bytes: int
    """Estimated size of one checkpoint on disk."""
    staging_bytes: int = 0
    """CPU memory for asynchronous checkpoint copies; 0: checkpoints are written synchronously."""
    estimated_step_s: float | None = None
    """Expected duration of an optimizer step in seconds; null: the rates of this machine are unknown."""


class ParallelismFacts(PlanSection):
    """How training state is sharded across processes; zero_stage 0: not sharded, and DeepSpeed is not used."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    offload_params: Literal["none", "cpu", "nvme"] = "none"
    deepspeed: dict[str, Any] | None = None
    """DeepSpeed's complete configuration; null with zero_stage 0."""


class Plan(PlanSection):
    schema_version: int = SCHEMA
    tunesmith_version: str
    recipe: Recipe
    recipe_file: str = ""
    """Absolute path of the recipe; relative paths in it are resolved against its directory first."""
    working_dir: str = ""
    """Absolute directory in which the run was started; relative paths are resolved against it second."""
    model: ModelFacts
    data: DataFacts
    batch: BatchFacts
    compute: ComputeFacts
    parallelism: ParallelismFacts = ParallelismFacts()
    choices: list[Choice]
    """For display and the report; the worker reads the fields above."""

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".json.tmp")
        temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)


def read_plan(path: Path) -> Plan:
    """Read plan.json. Raises OSError if it is missing, pydantic.ValidationError if it is not a plan of this version."""
    return Plan.model_validate_json(path.read_text(encoding="utf-8"))
