"""What combines with what: methods, optimizers, ZeRO stages, offloading, devices. Asked before anything is loaded.

A combination works where no line of the table below forbids it; every line has a test of what it lets through.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

from tunesmith.configs.recipe import Lora, Recipe
from tunesmith.configs.tasks import TASKS, Task, listed
from tunesmith.errors import InputError


@dataclass(frozen=True)
class Combination:
    """What must fit together. zero_stage is the one that was chosen, where the recipe says auto."""

    method: str
    use_dora: bool
    optimizer: str
    zero_stage: int
    offload_optimizer: str
    offload_params: str
    nvme_path: bool
    device: str
    task: str = "chat"
    export: str = "auto"
    label_smoothing: bool = False
    neftune: bool = False
    single_label: bool = False
    z_loss: bool = False

    @property
    def task_facts(self) -> Task:
        return TASKS[self.task]


@dataclass(frozen=True)
class Rule:
    forbids: Callable[[Combination], bool]
    why: str


_LANGUAGE_MODELING = listed(lambda task: task.is_language_modeling)

RULES = (
    Rule(
        lambda c: c.use_dora and c.zero_stage == 3,
        "DoRA reads a layer's whole weight outside of the layer, which zero_stage 3 divides over the processes",
    ),
    Rule(
        lambda c: c.offload_optimizer != "none" and c.zero_stage == 0,
        "only a ZeRO stage (1, 2 or 3) offloads the optimizer's state",
    ),
    Rule(lambda c: c.offload_optimizer == "nvme" and c.zero_stage < 3, "only zero_stage 3 offloads to nvme"),
    Rule(lambda c: c.offload_params != "none" and c.zero_stage < 3, "only zero_stage 3 offloads weights"),
    Rule(
        lambda c: c.offload_optimizer != "none" and c.optimizer != "adamw",
        "an optimizer whose state is offloaded keeps it in fp32",
    ),
    Rule(
        lambda c: "nvme" in (c.offload_optimizer, c.offload_params) and not c.nvme_path,
        "offloading to nvme needs a directory: parallelism.nvme_path",
    ),
    Rule(
        lambda c: c.zero_stage == 3 and not c.task_facts.is_language_modeling,
        f"weights are divided over the processes (zero_stage 3) for the tasks {_LANGUAGE_MODELING} only",
    ),
    Rule(
        lambda c: c.method == "qlora" and not c.task_facts.is_causal,
        f"only causal language models are read into 4 bits, for the tasks {listed(lambda task: task.is_causal)}",
    ),
    Rule(
        lambda c: c.export == "adapter" and c.task_facts.is_classifier,
        "a classifier's head and label names travel in the whole model, which an adapter is not",
    ),
    Rule(
        lambda c: c.label_smoothing and not c.task_facts.has_token_loss and not c.single_label,
        "label smoothing is for losses over one choice of several: tokens, or the labels of a single_label task",
    ),
    Rule(
        lambda c: c.z_loss and not c.task_facts.is_language_modeling,
        f"the z-loss is for losses over tokens, of the tasks {_LANGUAGE_MODELING}",
    ),
    Rule(
        lambda c: c.neftune and c.task_facts.is_encoder_decoder,
        "noise on the embeddings is for models with one input, not for encoder-decoder models",
    ),
    Rule(
        lambda c: c.optimizer == "paged_adamw_8bit" and c.device == "cpu",
        "pages move between a GPU and the CPU, and this run has no GPU",
    ),
)

# For the nearest combination that works: what may be changed, the least missed first.
_KEYS = {
    "zero_stage": ("parallelism.zero_stage", (2, 3, 1, 0)),
    "optimizer": ("optimization.optimizer", ("adamw_8bit", "adamw")),
    "offload_params": ("parallelism.offload_params", ("cpu", "none")),
    "offload_optimizer": ("parallelism.offload_optimizer", ("cpu", "none")),
    "use_dora": ("method.use_dora", (False,)),
    "method": ("method.kind", ("lora",)),
    "export": ("export.form", ("auto",)),
    "label_smoothing": ("optimization.label_smoothing", (False,)),
    "neftune": ("optimization.neftune_alpha", (False,)),
    "z_loss": ("optimization.z_loss", (False,)),
}


def combination_of(recipe: Recipe, *, zero_stage: int, device: str) -> Combination:
    parallelism = recipe.parallelism
    return Combination(
        method=recipe.method.kind,
        use_dora=isinstance(recipe.method, Lora) and recipe.method.use_dora,
        optimizer=recipe.optimization.optimizer,
        zero_stage=zero_stage,
        offload_optimizer=parallelism.offload_optimizer,
        offload_params=parallelism.offload_params,
        nvme_path=parallelism.nvme_path is not None,
        device=device,
        task=recipe.task,
        export=recipe.export.form,
        label_smoothing=recipe.optimization.label_smoothing > 0,
        single_label=recipe.classification.kind == "single_label" and recipe.task_facts.is_classifier,
        neftune=recipe.optimization.neftune_alpha is not None,
        z_loss=recipe.optimization.z_loss > 0,
    )


def require_combination(wanted: Combination) -> None:
    """InputError that says what does not go together and names the nearest combination that works."""
    if (rule := _broken(wanted)) is None:
        return
    raise InputError(
        f"this combination does not work: {rule.why}",
        where=", ".join([f"task: {wanted.task}", *_standing(wanted)]),
        remedy=f"the nearest that works: {_changes(wanted, nearest(wanted))}",
    )


def nearest(wanted: Combination) -> Combination:
    """The combination that works with the fewest keys changed."""
    for number in range(1, len(_KEYS) + 1):
        for names in combinations(_KEYS, number):
            for found in _variants(wanted, names):
                if _broken(found) is None:
                    return found
    return replace(wanted, zero_stage=0, optimizer="adamw", offload_optimizer="none", offload_params="none")


def _broken(wanted: Combination) -> Rule | None:
    return next((rule for rule in RULES if rule.forbids(wanted)), None)


def _variants(wanted: Combination, names: tuple[str, ...]) -> list[Combination]:
    """Every way to change exactly these."""
    found = [wanted]
    for name in names:
        values = [value for value in _KEYS[name][1] if value != getattr(wanted, name)]
        found = [replace(variant, **{name: value}) for variant in found for value in values]
    return found


def _changes(wanted: Combination, found: Combination) -> str:
    changed = [name for name in _KEYS if getattr(wanted, name) != getattr(found, name)]
    return ", ".join(f"{_KEYS[name][0]}: {_written(getattr(found, name))}" for name in changed)


def _standing(wanted: Combination) -> list[str]:
    """The keys that may clash, as they are; those that are off are left out."""
    shown = [(key, getattr(wanted, name)) for name, (key, _) in _KEYS.items()]
    return [f"{key}: {_written(value)}" for key, value in shown if value is not False]


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
