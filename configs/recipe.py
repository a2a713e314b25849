"""The recipe's schema: its sections are in configs/sections/. The only place of units, choices and defaults of keys."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tunesmith.configs.sections.data import Data
from tunesmith.configs.sections.method import Method
from tunesmith.configs.sections.model import Model
from tunesmith.configs.sections.objectives import Classification, Kto, Preference, Seq2Seq
from tunesmith.configs.sections.optimization import Optimization
from tunesmith.configs.sections.processes import Parallelism, Resources
from tunesmith.configs.sections.results import Checkpoint, Evaluation, Export
from tunesmith.configs.sections.section import Section
from tunesmith.configs.sections.trackers import Tracker, _each_tracker_once
from tunesmith.configs.tasks import TASKS, Task, TaskName

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
