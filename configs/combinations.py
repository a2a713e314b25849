"""Supported combinations of methods, optimizers, ZeRO stages, offloading and devices, checked before loading.

A combination is supported unless an entry of RULES forbids it; tests cover what each entry forbids and allows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Lora
from tunesmith.configs.tasks import TASKS, Task, listed
from tunesmith.errors import InputError


@dataclass(frozen=True)
class Combination:
    """The settings that must be compatible. zero_stage: the resolved stage if the recipe says auto."""

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
    offload_activations: bool = False
    adds_tokens: bool = False

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
        "DoRA reads a layer's full weight outside the layer, and zero_stage 3 shards weights across processes",
    ),
    Rule(
        lambda c: c.offload_optimizer != "none" and c.zero_stage == 0,
        "only ZeRO stages 1, 2 and 3 offload optimizer state",
    ),
    Rule(lambda c: c.offload_optimizer == "nvme" and c.zero_stage < 3, "only zero_stage 3 offloads to nvme"),
    Rule(lambda c: c.offload_params != "none" and c.zero_stage < 3, "only zero_stage 3 offloads weights"),
    Rule(
        lambda c: c.offload_optimizer != "none" and c.optimizer != "adamw",
        "offloaded optimizer state is always fp32",
    ),
    Rule(
        lambda c: "nvme" in (c.offload_optimizer, c.offload_params) and not c.nvme_path,
        "offloading to nvme requires a directory: parallelism.nvme_path",
    ),
    Rule(
        lambda c: c.zero_stage == 3 and not c.task_facts.is_language_modeling,
        f"zero_stage 3 (sharded weights) supports the tasks {_LANGUAGE_MODELING} only",
    ),
    Rule(
        lambda c: c.method == "qlora" and not c.task_facts.is_causal,
        f"only causal language models are loaded in 4 bits, for the tasks {listed(lambda task: task.is_causal)}",
    ),
    Rule(
        lambda c: c.export == "adapter" and c.task_facts.is_classifier,
        "a classifier's head and label names are saved in the full model only, not in an adapter",
    ),
    Rule(
        lambda c: c.label_smoothing and not c.task_facts.has_token_loss and not c.single_label,
        "label smoothing requires a softmax loss: over tokens, or over the labels of a single_label task",
    ),
    Rule(
        lambda c: c.z_loss and not c.task_facts.is_language_modeling,
        f"the z-loss requires a loss over tokens: the tasks {_LANGUAGE_MODELING}",
    ),
    Rule(
        lambda c: c.neftune and c.task_facts.is_encoder_decoder,
        "NEFTune noise is not supported for encoder-decoder models",
    ),
    Rule(
        lambda c: c.adds_tokens and not c.task_facts.is_causal,
        f"tokens are added to causal language models only, for the tasks {listed(lambda task: task.is_causal)}",
    ),
    Rule(
        lambda c: c.adds_tokens and c.method == "last_layers",
        "last_layers freezes the embedding, so that added tokens would keep their initial rows",
    ),
    Rule(
        lambda c: c.optimizer == "paged_adamw_8bit" and c.device == "cpu",
        "paged optimizer state moves between GPU and CPU memory, and this run has no GPU",
    ),
    Rule(
        lambda c: c.offload_activations and c.device == "cpu",
        "offloaded activations move between GPU and CPU memory, and this run has no GPU",
    ),
    Rule(
        lambda c: c.offload_activations and c.zero_stage == 3,
        "zero_stage 3 gathers weights for each layer, and these would be copied with the activations",
    ),
)

# Keys that may be changed to reach the nearest supported combination, the least important first.
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
    "offload_activations": ("optimization.offload_activations", (False,)),
    "adds_tokens": ("model.add_tokens", ([],)),
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
        offload_activations=recipe.optimization.offload_activations,
        adds_tokens=bool(recipe.model.add_tokens),
    )


def require_combination(combination: Combination) -> None:
    """Raise InputError with the conflict and the nearest supported combination, if this one is not supported."""
    if (rule := _violated_rule(combination)) is None:
        return
    raise InputError(
        f"unsupported combination: {rule.why}",
        where=", ".join([f"task: {combination.task}", *_settings(combination)]),
        remedy=f"the nearest supported combination: {_changes(combination, nearest(combination))}",
    )


def nearest(combination: Combination) -> Combination:
    """Return the supported combination that changes the fewest keys."""
    for number in range(1, len(_KEYS) + 1):
        for names in combinations(_KEYS, number):
            for variant in _variants(combination, names):
                if _violated_rule(variant) is None:
                    return variant
    return replace(combination, zero_stage=0, optimizer="adamw", offload_optimizer="none", offload_params="none")


def _violated_rule(combination: Combination) -> Rule | None:
    return next((rule for rule in RULES if rule.forbids(combination)), None)


def _variants(combination: Combination, names: tuple[str, ...]) -> list[Combination]:
    """Every way to change exactly the named fields."""
    variants = [combination]
    for name in names:
        values = [value for value in _KEYS[name][1] if value != getattr(combination, name)]
        variants = [replace(variant, **{name: value}) for variant in variants for value in values]
    return variants


def _changes(combination: Combination, supported: Combination) -> str:
    changed = [name for name in _KEYS if getattr(combination, name) != getattr(supported, name)]
    return ", ".join(f"{_KEYS[name][0]}: {_written(getattr(supported, name))}" for name in changed)


def _settings(combination: Combination) -> list[str]:
    """The current values of the keys that can conflict, without those that are off."""
    shown = [(key, getattr(combination, name)) for name, (key, _) in _KEYS.items()]
    return [f"{key}: {_written(value)}" for key, value in shown if value is not False]


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
