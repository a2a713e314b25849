"""Scoring between steps, distributed over all ranks."""

import shutil
from pathlib import Path

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.evaluation.job import score_from_queue
from tunesmith.evaluation.results import ExampleScores
from tunesmith.evaluation.score import score_index
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.protocol import Engine


def score_on_ranks(
    engine: Engine, ranks: Ranks, index: TokenIndex, tokenizer: Tokenizer, directory: Path
) -> ExampleScores | None:
    """Return the sums of each row on the first rank, None on the others. Every rank calls this.

    Ranks that hold the whole model pull batches from a queue in `directory` (in the run directory, deleted
    afterwards); if the model is sharded, all of them compute each batch together. The results are the same.
    """
    if ranks.world_size == 1 or engine.sharded:
        scores = score_index(engine.loss_module, index, tokenizer=tokenizer)
        return scores if ranks.is_first else None
    if ranks.is_first:
        shutil.rmtree(directory, ignore_errors=True)  # leftovers of a killed attempt were scored with other weights
    ranks.barrier()
    scores = score_from_queue(engine.loss_module, index, directory, tokenizer)
    ranks.barrier()
    if not ranks.is_first:
        return None
    shutil.rmtree(directory, ignore_errors=True)
    return scores
