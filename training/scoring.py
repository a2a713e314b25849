"""Scoring between steps, distributed over all ranks."""

import shutil
from pathlib import Path

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.evaluation.job import score_from_queue
from tunesmith.evaluation.results import ExampleScores
from tunesmith.evaluation.score import score_index
from tunesmith.rundir.fence import require_newest
from tunesmith.training.rank_context import RankContext


def score_on_ranks(context: RankContext, index: TokenIndex, name: str) -> ExampleScores | None:
    """Return the sums of each row on the first rank, None on the others. Every rank calls this.

    Ranks that hold the whole model pull batches from a queue in the run directory, which is deleted afterwards; if the
    model is sharded, all of them compute each batch together. The results are the same. name: a name that no other
    scoring of the attempt has. A queue's directory is never used twice: a network file system may show a rank the
    results of the earlier one, which were scored with other weights.
    """
    engine, ranks, tokenizer = context.engine, context.ranks, context.tokenizer
    if ranks.world_size == 1 or engine.sharded:
        scores = score_index(engine.loss_module, index, tokenizer=tokenizer)
        return scores if ranks.is_first else None
    directory = context.run.scoring / f"{context.attempt}-{name}"
    ranks.from_first(lambda: _create(context, directory))
    scores = score_from_queue(engine.loss_module, index, directory, tokenizer)
    ranks.barrier()
    if not ranks.is_first:
        return None
    shutil.rmtree(directory, ignore_errors=True)
    return scores


def _create(context: RankContext, directory: Path) -> None:
    """Create the directory of a queue, and remove those of earlier attempts. The directory around them stays: a network
    file system may show another host for a while that it exists after it was deleted."""
    require_newest(context.run, context.attempt)
    directory.parent.mkdir(exist_ok=True)
    for leftover in directory.parent.iterdir():
        shutil.rmtree(leftover, ignore_errors=True)
    directory.mkdir()
