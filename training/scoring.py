"""Scoring between steps, distributed over all ranks."""

import shutil

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.evaluation.job import score_from_queue
from tunesmith.evaluation.results import ExampleScores
from tunesmith.evaluation.score import score_index
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
    queues = context.run.scoring
    if ranks.is_first:
        shutil.rmtree(queues, ignore_errors=True)  # leftovers of a killed attempt
    ranks.barrier()
    scores = score_from_queue(engine.loss_module, index, queues / f"{context.attempt}-{name}", tokenizer)
    ranks.barrier()
    if not ranks.is_first:
        return None
    shutil.rmtree(queues, ignore_errors=True)
    return scores
