"""What a preference is compared with: the log-probability of every answer under the model as it was before training.

Measured once, before the first step, and kept in the run directory: a resumed run compares with the same numbers.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from tunesmith.configs.plan import Plan
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.evaluation.pairs import log_probabilities
from tunesmith.rundir.atomic import fsync_directory
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoint.tensor_file import write_tensors
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.protocol import Engine
from tunesmith.training.journal import Journal

Reference = dict[str, np.ndarray]
"""By split ("train", "validation"): float32, a log-probability for every document of its index."""


def reference_of(run: RunDir, plan: Plan, engine: Engine, ranks: Ranks, journal: Journal) -> Reference:
    """Read from the run, or measured now: the engine must hold the untrained model. Empty where the task or its loss
    compares with nothing. Every rank calls this; each measures its share of the documents."""
    if not plan.recipe.needs_reference:
        return {}
    if (stored := ranks.from_first(lambda: _read(run.reference, plan))) is not None:
        return stored
    journal.phase("evaluating")
    found: Reference = {}
    for split, facts in (("train", plan.data.train), ("validation", plan.data.validation)):
        if facts is not None:
            index = TokenIndex.open(Path(facts.index))
            share = range(ranks.rank, index.num_documents, ranks.world_size)
            values, _ = log_probabilities(engine.loss_module, index, share)
            found[split] = np.array(ranks.sum(*values.tolist()), np.float32)
    if ranks.is_first:
        _write(run.reference, found, plan)
    ranks.barrier()
    journal.phase("loading")
    return found


def _read(path: Path, plan: Plan) -> Reference | None:
    """None where there is none, or it belongs to another model or other data."""
    try:
        with safe_open(str(path), framework="np") as file:
            if file.metadata() != _belonging(plan):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError):
        return None


def _write(path: Path, found: Reference, plan: Plan) -> None:
    temporary = path.with_suffix(".tmp")
    tensors = ((name, torch.from_numpy(values)) for name, values in found.items())
    write_tensors(temporary, {name: values.shape for name, values in found.items()}, tensors, _belonging(plan))
    temporary.replace(path)
    fsync_directory(path.parent)


def _belonging(plan: Plan) -> dict[str, str]:
    return {"model": plan.model.fingerprint, "data": plan.data.fingerprint}
