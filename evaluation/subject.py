"""The subject of an evaluation: a model directory, an adapter, a GGUF file, a hub id or a run, and how to load it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith.configs.plan import Plan, read_plan
from tunesmith.data.cache import cache_root
from tunesmith.data.tokenization.model_size import embedding_size
from tunesmith.data.tokenization.planned import planned_tokenizer
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError
from tunesmith.evaluation.trained import exported_checkpoint, load_trained, plan_with_base, tokenizer_of
from tunesmith.model_files import ADAPTER_CONFIG, fault_of, require_undamaged
from tunesmith.modeling.base_model.adapter_files import adapter_base
from tunesmith.modeling.base_model.config_values import of_text
from tunesmith.modeling.base_model.fingerprint import file_digest
from tunesmith.modeling.base_model.new_rows import rows_needed
from tunesmith.modeling.base_model.source import resolve_model
from tunesmith.modeling.base_model.weight_files import read_object
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.text_model import causal_config
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.forward_path import ForwardPath
from tunesmith.modeling.losses.task_loss import make_loss, planned_path
from tunesmith.modeling.precision import autocast_dtype, inference_dtype
from tunesmith.modeling.proof.loaded import differing, prove_loaded
from tunesmith.rundir.paths import RunDir, step_of


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    name: for display. context: maximum number of tokens. plan: of the run that it comes from, if any. load: loads the
    weights. directories: of all files that define the model.
    """

    name: str
    tokenizer: Tokenizer
    context: int
    plan: Plan | None
    load: Callable[[], CausalLoss]
    directories: tuple[Path, ...]

    def fingerprint(self) -> str:
        """Return a SHA-256 over the names and contents of its files, cached so that unchanged weights are read once."""
        files = sorted(
            path
            for directory in self.directories
            for path in directory.iterdir()
            if path.name.endswith((".json", ".safetensors", ".jinja"))
        )
        lines = [f"{path.name} {file_digest(path, cache_root())}" for path in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def find_subject(target: str) -> Subject:
    """Resolve a target without loading weights. Raises InputError if it is not a model, RunFault if it is damaged."""
    path = Path(target).expanduser()
    if RunDir(path).exists:
        return _of_run(RunDir(path))
    if path.is_dir() and not (path / "config.json").is_file() and not (path / ADAPTER_CONFIG).is_file():
        raise InputError(
            "this directory is neither a run nor a model",
            where=str(path),
            remedy="pass a run directory (with plan.json), a Hugging Face directory or an adapter directory",
        )
    if (path / ADAPTER_CONFIG).is_file():
        return _of_directory(target, path, None)
    return _of_directory(target, resolve_model(target, None, Path.cwd(), cache=cache_root()), None)


def _of_run(run: RunDir) -> Subject:
    """The export of the run, or the newest checkpoint if the export is missing or damaged."""
    plan = read_plan(run.plan)
    # Checkpoints of other tasks are loaded into the loss module of their task.
    is_exported = run.export.is_dir() and fault_of(run.export) is None
    if plan.recipe.task_facts.is_language_modeling and is_exported:
        base = None
        if (run.export / ADAPTER_CONFIG).is_file():
            plan = plan_with_base(run)
            base = Path(plan.model.directory)
        return _of_directory(f"{run.root} (its export)", run.export, plan, base)
    plan = plan_with_base(run)
    checkpoint = exported_checkpoint(run, plan)
    compute_dtype = autocast_dtype(plan.compute.precision)
    return Subject(
        name=f"{run.root} (checkpoint of step {step_of(checkpoint)})",
        tokenizer=tokenizer_of(plan),
        context=_context(Path(plan.model.directory)),
        plan=plan,
        load=lambda: make_loss(plan, load_trained(plan, checkpoint), compute_dtype=compute_dtype),
        directories=(Path(plan.model.directory), checkpoint),
    )


def _of_directory(name: str, directory: Path, plan: Plan | None, base: Path | None = None) -> Subject:
    """base: of an adapter; None: as named in the adapter."""
    require_undamaged(directory)
    if base is None:
        base = adapter_base(directory) if (directory / ADAPTER_CONFIG).is_file() else directory
    own_tokenizer = directory if (directory / "tokenizer.json").is_file() else base
    tokenizer = Tokenizer.load(own_tokenizer) if plan is None else planned_tokenizer(plan, own_tokenizer)
    size = embedding_size(base)  # an adapter's directory has no config.json
    if size is not None and (directory / ADAPTER_CONFIG).is_file():
        size = max(size, rows_needed(directory))
    tokenizer.num_embeddings = size
    return Subject(
        name=name,
        tokenizer=tokenizer,
        context=_context(base),
        plan=plan,
        load=lambda: _load(directory, base, plan),
        directories=(directory,) if directory == base else (directory, base),
    )


def _load(directory: Path, base: Path, plan: Plan | None) -> CausalLoss:
    """Load in fp32, or in bf16 for a bf16 model on a GPU with tensor cores for it: others are much slower in bf16, and
    fp16 has too small a range for some of these models. Without a model proof in a plan, the loaded model is compared
    with its own forward."""
    cuda = torch.cuda.is_available()
    native = cuda and inference_dtype(torch.device("cuda")) == torch.bfloat16
    bf16 = native and stored_dtype(base) == "bfloat16"
    device = "cuda" if cuda else "cpu"
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = load_model(directory, dtype=dtype, device=device, base=base)
    if plan is not None and plan.model.proof is not None:
        return CausalLoss(model, path=planned_path(plan))
    loss = CausalLoss(model, path=ForwardPath(packed=False))
    path, results = prove_loaded(loss)
    if path is None:
        raise differing(results[-1], str(directory))
    return loss


def _context(directory: Path) -> int:
    """Maximum number of tokens: of the text model, with its class's default where config.json omits it."""
    config = causal_config(directory)
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048)


def stored_dtype(directory: Path) -> str | None:
    """Return the dtype that the config.json of a directory states, of a multimodal model as a whole or for its text
    model; None if it states none."""
    config = read_object(directory / "config.json")
    stated = [part.get(key) for part in (of_text(config), config) for key in ("dtype", "torch_dtype")]
    return next(filter(None, stated), None)
