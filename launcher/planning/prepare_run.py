"""From a recipe to a plan: find the model, prepare the data, detect the hardware. Shared by plan, train and resume."""

import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Protocol

from tunesmith.configs.load import load_recipe_text, read_recipe_text
from tunesmith.configs.plan import DataFacts, ModelFacts, Plan
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Lora
from tunesmith.data.cache import cache_root
from tunesmith.data.index.prepare import earlier_fingerprint, named_files
from tunesmith.data.index.prepare import prepare as prepare_data
from tunesmith.data.readers.sources import resolve
from tunesmith.data.tokenization.planned import rendering_date
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError
from tunesmith.launcher.backends.base import Backend
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.adapter_base import Base, require_continuable, resolve_base
from tunesmith.launcher.planning.batching import DoesNotFit
from tunesmith.launcher.planning.machines import Machines
from tunesmith.launcher.planning.model_proof import with_proof
from tunesmith.launcher.planning.new_tokens import with_new_tokens
from tunesmith.launcher.planning.planner import OwnConfig
from tunesmith.launcher.planning.strategies import Planner, with_what_would_fit
from tunesmith.model_files import require_undamaged
from tunesmith.rundir.paths import RunDir
from tunesmith.tracking.trackers import require_installed

OnProgress = Callable[[str, int, int], None]
"""stage, done, total."""


@dataclass(frozen=True)
class Request:
    """A requested recipe: file, text, overrides, and the resulting recipe."""

    file: Path
    text: str
    overrides: tuple[str, ...]
    recipe: Recipe

    @property
    def directory(self) -> Path:
        return self.file.resolve().parent


def read_request(file: Path, overrides: Sequence[str] = ()) -> Request:
    """Read and validate a recipe file. Raises InputError that lists all errors in the recipe."""
    text = read_recipe_text(file)
    return Request(file, text, tuple(overrides), load_recipe_text(text, str(file), overrides))


def find_model(recipe: Recipe, recipe_dir: Path) -> ModelFacts:
    """Find the base model; Hub models are downloaded and GGUF files converted at first use. Raises InputError, and
    RunFault if it is a damaged export."""
    from tunesmith.modeling.base_model.adapter_targets import require_mergeable
    from tunesmith.modeling.base_model.source import model_facts

    if recipe.export.form == "merged":
        require_mergeable(recipe.method, recipe.task_facts.model)
    (directory, tokenizer), template = _model_and_template(recipe, recipe_dir)
    require_undamaged(directory)
    require_continuable(recipe, recipe_dir)
    facts = model_facts(directory, recipe.model.base, recipe.method, cache=cache_root(), task=recipe.task)
    facts = facts.model_copy(update={"adapter_tokenizer": tokenizer})
    if recipe.model.add_tokens:
        facts = with_new_tokens(recipe, facts)
    if template is not None:
        facts = facts.model_copy(update={"chat_template": str(template)})
    return facts.model_copy(update=_earlier_adapter(recipe, recipe_dir))


def _earlier_adapter(recipe: Recipe, recipe_dir: Path) -> dict[str, str]:
    """Fields of ModelFacts for the adapter to continue training from. Raises InputError if it is missing, RunFault if
    it is damaged."""
    from tunesmith.modeling.base_model.fingerprint import file_digest

    if recipe.model.adapter == "continue":
        named, key = recipe.model.base, "model.base"
    elif isinstance(recipe.method, Lora) and recipe.method.start_from is not None:
        named, key = recipe.method.start_from, "method.start_from"
    else:
        return {}
    weights = find_file(f"{named}/adapter_model.safetensors", recipe_dir, key)
    require_undamaged(weights.parent)
    return {"adapter": str(weights.parent), "adapter_sha256": file_digest(weights, cache_root())}


def find_tokenizer(recipe: Recipe, recipe_dir: Path, today: date | None = None) -> Tokenizer:
    """Load the tokenizer of the base model with the recipe's chat template, without the weights unless the recipe adds
    tokens. today: the date that the template prints; None: the current date. Raises InputError."""
    variables = recipe.model.chat_template_kwargs
    if recipe.model.add_tokens:
        facts = find_model(recipe, recipe_dir)
        template = Path(facts.chat_template) if facts.chat_template else None
        return Tokenizer.load(Path(facts.directory), template, today, variables)
    base, template = _model_and_template(recipe, recipe_dir)
    return Tokenizer.load(base.directory, template, today, variables)


def _model_and_template(recipe: Recipe, recipe_dir: Path) -> tuple[Base, Path | None]:
    base = resolve_base(recipe, recipe_dir)
    if recipe.model.chat_template is None:
        return base, None
    return base, find_file(recipe.model.chat_template, recipe_dir, "model.chat_template")


def find_file(name: str, recipe_dir: Path, key: str) -> Path:
    """Find a file named in the recipe, relative to its directory or the working directory. Raises InputError."""
    tried = [(recipe_dir / Path(name).expanduser()).resolve(), Path(name).expanduser().resolve()]
    for path in tried:
        if path.is_file():
            return path
    places = " and ".join(dict.fromkeys(map(str, tried)))
    raise InputError(f"file {name!r} not found", where=f"key {key}", remedy=f"tried {places}")


def prepare_rows(
    recipe: Recipe,
    model: ModelFacts,
    recipe_dir: Path,
    run: RunDir | None,
    on_progress: OnProgress | None,
    backend: Backend,
    rendered_on: str | None = None,
) -> DataFacts:
    """Prepare the rows: a token index in the cache, and receipts in the run directory if given. rendered_on: the date
    that the chat template prints, from the run's plan; None: the current date. Raises InputError."""
    template = Path(model.chat_template) if model.chat_template else None
    tokenizer = Tokenizer.load(
        Path(model.directory), template, rendering_date(rendered_on), recipe.model.chat_template_kwargs
    )
    return prepare_data(
        recipe,
        tokenizer,
        recipe_dir=recipe_dir,
        cache=cache_root(),
        run=run,
        progress=on_progress,
        shards_by=backend.prepare_shards,
    )


def prepared_by_earlier_version(recipe: Recipe, model: ModelFacts, recipe_dir: Path, fingerprint: str) -> bool:
    """Whether version 0.2 prepared the recipe's rows, unchanged since, under this fingerprint."""
    if sources_are_missing(recipe, recipe_dir):
        return False
    template = Path(model.chat_template) if model.chat_template else None
    tokenizer = Tokenizer.load(Path(model.directory), template)
    return earlier_fingerprint(recipe, tokenizer, recipe_dir) == fingerprint


def sources_are_missing(recipe: Recipe, recipe_dir: Path) -> bool:
    """Whether any data file of the recipe is missing."""
    try:
        resolve(named_files(recipe), recipe_dir)
    except InputError:
        return True
    return False


class Resources(Protocol):
    """What a plan needs to know of the place where a run trains; every back end is one."""

    @property
    def several_nodes(self) -> bool: ...

    def hardware(self, *, measure: bool = False) -> Hardware: ...

    def num_nodes(self) -> int: ...


def plan_of(
    request: Request, model: ModelFacts, data: DataFacts, place: Resources, earlier: Plan | None = None
) -> Plan:
    """Make the plan for the current hardware of a back end, or for machines elsewhere. earlier: the plan of a run that
    is resumed: its precision is kept. Raises InputError if the model proof fails, or the run does not fit, with what
    would."""
    planner = planner_of(request, model, data, place, earlier)
    try:
        plan = planner.plan(request.recipe)
    except DoesNotFit as error:
        raise with_what_would_fit(error, request.recipe, planner) from error
    return with_proof(plan, cache_root())


def planner_of(
    request: Request, model: ModelFacts, data: DataFacts, place: Resources, earlier: Plan | None = None
) -> Planner:
    """Detect the hardware once, for any number of plans."""
    measure = request.recipe.precision == "auto" and earlier is None
    return Planner(
        model=lambda variant: (
            model if variant.method == request.recipe.method else find_model(variant, request.directory)
        ),
        data=data,
        hardware=place.hardware(measure=measure),
        num_nodes=place.num_nodes(),
        several_nodes=place.several_nodes,
        recipe_file=request.file,
        working_dir=Path.cwd(),
        threads=threads_of_user(),
        installed=_is_installed if not isinstance(place, Machines) else lambda package: True,
        own=_own_deepspeed(request),
        earlier=earlier,
    )


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _own_deepspeed(request: Request) -> OwnConfig | None:
    """The DeepSpeed configuration named in the recipe, if any. Raises InputError if it cannot be read."""
    name = request.recipe.parallelism.deepspeed_config
    if name is None:
        return None
    path = find_file(name, request.directory, "parallelism.deepspeed_config")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"the DeepSpeed configuration is not JSON: {error}", where=str(path)) from error
    if not isinstance(content, dict):
        raise InputError("the DeepSpeed configuration is not a JSON object", where=str(path))
    return OwnConfig(content, str(path))


def threads_of_user() -> int | None:
    """OMP_NUM_THREADS, if set to a positive number."""
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(text) if text.isdigit() and int(text) > 0 else None


def make_whole_plan(request: Request, backend: Backend, on_progress: OnProgress | None = None) -> Plan:
    """Make a plan without creating a run directory, for `train --dry-run`."""
    model, data = facts_of(request, backend, on_progress)
    return plan_of(request, model, data, backend)


def facts_of(request: Request, backend: Backend, on_progress: OnProgress | None = None) -> tuple[ModelFacts, DataFacts]:
    """Find the model and prepare the rows, without a run directory."""
    require_installed(request.recipe.tracking)
    model = find_model(request.recipe, request.directory)
    return model, prepare_rows(request.recipe, model, request.directory, None, on_progress, backend)
