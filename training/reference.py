"""Reference log-probabilities: of every answer under the model before training.

Computed once, before the first step, and stored in the run directory, so that a resumed run uses the same numbers.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from tunesmith.configs.plan import Plan
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.index.unrelated import ReferenceScores, unrelated_in
from tunesmith.evaluation.log_probabilities import log_probabilities, sample_log_probabilities
from tunesmith.rundir.atomic import fsync_directory
from tunesmith.rundir.fence import require_newest
from tunesmith.training.checkpoint.fingerprints import mixture_of
from tunesmith.training.checkpoint.tensor_file import write_tensors
from tunesmith.training.rank_context import RankContext
from tunesmith.training.samples import loader_of

Reference = dict[str, ReferenceScores]
"""By split ("train", "validation")."""

_UNRELATED = "_unrelated"
"""Suffix of a split's name in the file, for its unrelated pairs."""


def reference_log_probabilities(context: RankContext) -> Reference:
    """Read the scores from the run directory, or compute them: the engine must then hold the untrained model.

    Empty if the task or its loss needs no reference. Every rank calls this; each computes its share of the documents.
    """
    run, plan, ranks, journal = context.run, context.plan, context.ranks, context.journal
    if not plan.recipe.needs_reference:
        return {}
    if (stored := ranks.from_first(lambda: _read(run.reference, plan))) is not None:
        return stored
    journal.phase("evaluating")
    reference: Reference = {}
    for split, facts in (("train", plan.data.train), ("validation", plan.data.validation)):
        if facts is not None:
            index = TokenIndex.open(Path(facts.index))
            share = range(ranks.rank, index.num_documents, ranks.world_size)
            values, _ = log_probabilities(context.engine.loss_module, index, share)
            documents = np.array(ranks.sum(*values.tolist()), np.float32)
            reference[split] = ReferenceScores(documents, _unrelated(context, split, index))
    if ranks.is_first:
        require_newest(run, context.attempt)
        _write(run.reference, reference, plan)
    ranks.barrier()
    journal.phase("loading")
    return reference


def _unrelated(context: RankContext, split: str, index: TokenIndex) -> np.ndarray | None:
    """float32 [pairs]: of every unrelated pair of the run's steps, or of the held-out rows as one batch."""
    plan, ranks = context.plan, context.ranks
    if not plan.recipe.task_facts.needs_unrelated:
        return None
    if split == "train":
        loader = loader_of(plan, index, ranks)
        count, pair_at = loader.num_unrelated, loader.unrelated_at
    else:
        count, pair_at = index.num_samples, partial(unrelated_in, index)
    share = range(ranks.rank, count, ranks.world_size)
    values = sample_log_probabilities(context.engine.loss_module, count, pair_at, share)
    return np.array(ranks.sum(*values.tolist()), np.float32)


def _read(path: Path, plan: Plan) -> Reference | None:
    """None if the file is missing or belongs to another model or other data."""
    try:
        with safe_open(str(path), framework="np") as file:
            if file.metadata() != _metadata(plan):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            splits = [name for name in tensors if not name.endswith(_UNRELATED)]
            return {name: ReferenceScores(tensors[name], tensors.get(name + _UNRELATED)) for name in splits}
    except (OSError, SafetensorError):
        return None


def _write(path: Path, reference: Reference, plan: Plan) -> None:
    temporary = path.with_suffix(".tmp")
    arrays = {name: scores.documents for name, scores in reference.items()}
    arrays |= {name + _UNRELATED: s.unrelated for name, s in reference.items() if s.unrelated is not None}
    tensors = ((name, torch.from_numpy(values)) for name, values in arrays.items())
    write_tensors(temporary, {name: values.shape for name, values in arrays.items()}, tensors, _metadata(plan))
    temporary.replace(path)
    fsync_directory(path.parent)


def _metadata(plan: Plan) -> dict[str, str]:
    metadata = {"model": plan.model.fingerprint, "data": plan.data.fingerprint}
    if plan.recipe.task_facts.needs_unrelated:  # these depend on which rows share a step
        options = plan.recipe.optimization
        order: list[object] = [plan.recipe.seed, options.global_batch_size, options.epochs, options.max_steps]
        order += [] if plan.data.epoch_samples is None else [mixture_of(plan)]
        metadata["order"] = json.dumps(order)
    return metadata
