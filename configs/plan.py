"""The resolved plan: every choice of a run with its reason. Written once by the launcher, read by every worker."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tunesmith.configs.recipe import Recipe

SCHEMA = 1


class PlanSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Choice(PlanSection):
    """One thing the plan chose, for people: the value, why, and what it costs in bytes where known."""

    key: str
    value: Any
    reason: str
    num_bytes: int | None = None


class ModelFacts(PlanSection):
    """The base model as found on disk."""

    directory: str
    """A local Hugging Face directory, absolute. Hub ids and GGUF files were brought into this form before."""
    source: str
    """What the recipe named."""
    chat_template: str | None = None
    """Absolute path of the template that replaces the model's own; null: the model's own."""
    adapter: str | None = None
    """Absolute directory of the adapter that is trained further; null: it begins with a fresh one, or has none."""
    adapter_sha256: str | None = None
    """Of its weights."""
    fingerprint: str
    """SHA-256 over the names, sizes and content hashes of config, weights and tokenizer files."""
    model_type: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_params: int
    num_trained_params: int
    """Estimated from the configuration; the worker counts them and fails where none is trained."""
    tied_embeddings: bool
    max_positions: int | None = None
    """Tokens beyond which the model has no positions; null: it has them for any number, or does not say."""


class SplitFacts(PlanSection):
    """One prepared split. Samples are what a batch counts: rows, or packed sequences of rows."""

    index: str
    """Absolute directory of the token index."""
    num_rows: int
    num_samples: int
    num_tokens: int
    supervised_tokens: int
    longest_tokens: int


class DataFacts(PlanSection):
    fingerprint: str
    """Of everything the token index depends on: files, tokenizer, template, options."""
    train: SplitFacts
    validation: SplitFacts | None
    num_rejected: int
    num_dropped: int
    num_truncated: int
    num_duplicates: int
    retain: SplitFacts | None = None
    """Rows of evaluation.retain, scored before and after."""
    labels: list[str] | None = None
    """Of a classification: names in the order of their numbers; of a binary one the negative first."""
    label_counts: list[int] | None = None
    """Training rows of each label, in the same order."""


class BatchFacts(PlanSection):
    micro_batch_size: int
    """Sequences a rank and forward pass."""
    grad_accum_steps: int
    """Forward passes a rank and step, at most."""
    steps_per_epoch: float
    total_steps: int
    warmup_steps: int
    checkpoint_every_steps: int
    evaluation_every_steps: int | None
    """None: only before the first step and after the last."""


class ComputeFacts(PlanSection):
    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    world_size: int
    """Processes that train."""
    min_world_size: int = 1
    """Fewer of them do not go on when a machine is lost; memory and micro-batch are reckoned for so many."""
    nodes: int = 1
    threads_per_rank: int
    memory_bytes: int
    """What a rank may use."""
    estimated_peak_bytes: int
    """What it is expected to use."""
    checkpoint_bytes: int
    """Size of one checkpoint on disk, estimated."""
    staging_bytes: int = 0
    """Memory of the CPU for a copy that is written while the loop goes on; 0: the loop waits for every checkpoint."""


class ParallelismFacts(PlanSection):
    """How the model is divided over the processes; zero_stage 0: not at all, and DeepSpeed is not used."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    offload_params: Literal["none", "cpu", "nvme"] = "none"
    deepspeed: dict[str, Any] | None = None
    """DeepSpeed's configuration, whole; null with zero_stage 0."""


class Plan(PlanSection):
    schema_version: int = SCHEMA
    tunesmith_version: str
    recipe: Recipe
    recipe_file: str = ""
    """Absolute path of the recipe: paths in it are relative to its directory."""
    working_dir: str = ""
    """Absolute directory in which the run was started: where a relative path is looked for next."""
    model: ModelFacts
    data: DataFacts
    batch: BatchFacts
    compute: ComputeFacts
    parallelism: ParallelismFacts = ParallelismFacts()
    choices: list[Choice]
    """For people and the report; the worker reads the fields above."""

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".json.tmp")
        temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)


def read_plan(path: Path) -> Plan:
    """Raises OSError where there is none, pydantic.ValidationError where it is not a plan of this version."""
    return Plan.model_validate_json(path.read_text(encoding="utf-8"))
