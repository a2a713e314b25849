"""Other ways to run a recipe: what they need, how long a step takes, and which is the fastest that fits. Pure.

A strategy is a list of recipe overrides, as for --set. Each is planned completely; a comparison therefore has the
numbers and refusals of the plan that this recipe would get.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.configs.load import load_recipe_text
from tunesmith.configs.plan import DataFacts, ModelFacts, Plan
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Lora, QLora
from tunesmith.errors import InputError
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.batching import DoesNotFit
from tunesmith.launcher.planning.planner import OwnConfig, make_plan
from tunesmith.launcher.planning.world import choose_world, usable_hardware
from tunesmith.report.wording import size

MAX_SHOWN = 4
"""Strategies that the error of a run that does not fit names."""


@dataclass(frozen=True)
class Planner:
    """Plans variants of one recipe for the same rows and machines (arguments: see `make_plan`). model: facts of a
    recipe's model, of which the trained weights depend on the method."""

    model: Callable[[Recipe], ModelFacts]
    data: DataFacts
    hardware: Hardware
    num_nodes: int
    several_nodes: bool
    recipe_file: Path | None
    working_dir: Path | None
    threads: int | None
    installed: Callable[[str], bool]
    own: OwnConfig | None = None
    earlier: Plan | None = None

    def plan(self, recipe: Recipe) -> Plan:
        """Make the plan of a recipe. Raises InputError; DoesNotFit if memory does not suffice."""
        hardware = usable_hardware(recipe, self.hardware)
        world, choice = choose_world(recipe, hardware, num_nodes=self.num_nodes, several_nodes=self.several_nodes)
        return make_plan(
            recipe,
            self.model(recipe),
            self.data,
            hardware,
            world=world,
            world_choice=choice,
            recipe_file=self.recipe_file,
            working_dir=self.working_dir,
            threads=self.threads,
            installed=self.installed,
            own=self.own,
            earlier=self.earlier,
        )

    @property
    def device(self) -> str:
        return "cuda" if self.hardware.gpus and self.hardware.torch_has_cuda else "cpu"

    def world_size(self, recipe: Recipe) -> int:
        """Processes of the run, or 1 if there are not enough resources."""
        try:
            hardware = usable_hardware(recipe, self.hardware)
            return choose_world(recipe, hardware, num_nodes=self.num_nodes, several_nodes=self.several_nodes)[0].size
        except InputError:
            return 1


@dataclass(frozen=True)
class Outcome:
    """A planned strategy. overrides: none for the recipe as it is. plan: None if it was refused. needed_bytes: peak of
    a process, also where it does not fit; None: unknown. refusal: why there is no plan."""

    overrides: tuple[str, ...]
    plan: Plan | None
    needed_bytes: int | None
    refusal: str = ""

    @property
    def name(self) -> str:
        return ", ".join(self.overrides) or "the recipe"

    @property
    def changes_method(self) -> bool:
        return any(override.startswith("method.") for override in self.overrides)

    @property
    def step_s(self) -> float | None:
        return self.plan.compute.estimated_step_s if self.plan else None


def compare(recipe: Recipe, planner: Planner) -> list[Outcome]:
    """Plan the recipe and its strategies: ZeRO stages, with and without checkpointing, offloading, other methods."""
    strategies = [(), *_strategies(recipe, planner.world_size(recipe), planner.device)]
    return [_outcome(recipe, overrides, planner) for overrides in strategies]


def fastest(outcomes: list[Outcome]) -> Outcome | None:
    """The outcome with the shortest step that trains with the method of the recipe; None without estimates."""
    timed = [one for one in outcomes if one.step_s is not None and not one.changes_method]
    return min(timed, key=lambda one: one.step_s or 0.0, default=None)


def _outcome(recipe: Recipe, overrides: tuple[str, ...], planner: Planner) -> Outcome:
    try:
        plan = planner.plan(overridden(recipe, overrides))
    except DoesNotFit as error:
        return Outcome(overrides, None, error.needed_bytes, "does not fit")
    except InputError as error:
        return Outcome(overrides, None, None, error.what)
    return Outcome(overrides, plan, plan.compute.estimated_peak_bytes)


def overridden(recipe: Recipe, overrides: tuple[str, ...]) -> Recipe:
    """The recipe with `key=value` overrides. Raises InputError."""
    return load_recipe_text(recipe.model_dump_json(), "the recipe", overrides) if overrides else recipe


def with_what_would_fit(error: DoesNotFit, recipe: Recipe, planner: Planner) -> DoesNotFit:
    """The error with the strategies that fit, those that change least first, and their memory."""
    fitting = []
    for overrides in _smaller(recipe, planner.world_size(recipe), planner.device):
        one = _outcome(recipe, overrides, planner)
        if one.plan is not None:
            fitting.append(f"--set {' --set '.join(overrides)} needs {size(one.plan.compute.estimated_peak_bytes)}")
        if len(fitting) == MAX_SHOWN:
            break
    if not fitting:
        return error
    return DoesNotFit(
        needed_bytes=error.needed_bytes,
        memory_bytes=error.memory_bytes,
        where=error.where or "",
        remedy=f"these fit: {'; '.join(fitting)}. In general: {error.remedy}",
    )


def _strategies(recipe: Recipe, world_size: int, device: str) -> Iterator[tuple[str, ...]]:
    stages = (0, 1, 2, 3) if world_size > 1 else (0,)
    for stage in stages:
        for checkpointing in ("false", "true"):
            yield (f"parallelism.zero_stage={stage}", f"optimization.gradient_checkpointing={checkpointing}")
    if device == "cuda":
        yield ("optimization.offload_activations=true",)
        if not isinstance(recipe.method, Lora):
            yield ("parallelism.zero_stage=2", "parallelism.offload_optimizer=cpu")
    yield from _methods(recipe)


def _methods(recipe: Recipe) -> Iterator[tuple[str, ...]]:
    if isinstance(recipe.method, QLora):
        yield ("method.kind=lora",)
    elif isinstance(recipe.method, Lora):
        yield ("method.kind=qlora",)
    else:
        yield ("method.kind=lora",)
        yield ("method.kind=qlora",)


def _smaller(recipe: Recipe, world_size: int, device: str) -> Iterator[tuple[str, ...]]:
    checkpointing = "optimization.gradient_checkpointing=true"
    yield (checkpointing,)
    if recipe.optimization.micro_batch_size not in (None, 1):
        yield (checkpointing, "optimization.micro_batch_size=1")
    if world_size > 1:
        yield (checkpointing, "parallelism.zero_stage=3")
    if device == "cuda":
        yield (checkpointing, "optimization.offload_activations=true")
        if not isinstance(recipe.method, Lora):
            stage = 3 if world_size > 1 else 2
            yield (checkpointing, f"parallelism.zero_stage={stage}", "parallelism.offload_optimizer=cpu")
    for override in _methods(recipe):
        if not isinstance(recipe.method, QLora):
            yield override
    length = recipe.data.max_seq_len // 2
    while length >= 256:
        yield (checkpointing, f"data.max_seq_len={length}")
        length //= 2
