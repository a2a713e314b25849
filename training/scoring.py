"""Scoring between steps: by all ranks together."""

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
    engine: Engine, ranks: Ranks, index: TokenIndex, tokenizer: Tokenizer, place: Path
) -> ExampleScores | None:
    """Sums by row, on the first rank; None on others. Every rank calls.

    Ranks that hold the whole model pull batches from a queue in `place` (in the run directory, gone afterwards); where
    the model is divided, all of them compute each batch together. The numbers are the same.
    """
    if ranks.world_size == 1 or engine.sharded:
        scores = score_index(engine.loss_module, index, tokenizer=tokenizer)
        return scores if ranks.is_first else None
    if ranks.is_first:
        shutil.rmtree(place, ignore_errors=True)  # what a killed attempt left was scored with other weights
    ranks.barrier()
    scores = score_from_queue(engine.loss_module, index, place, tokenizer)
    ranks.barrier()
    if not ranks.is_first:
        return None
    shutil.rmtree(place, ignore_errors=True)
    return scores
