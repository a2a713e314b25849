"""Evaluations in addition to the validation loss: general rows before and after training (forgetting), and the base
model with few-shot prompts (would prompting have been enough?). Every rank calls these functions."""

import tempfile
from dataclasses import asdict
from pathlib import Path

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.evaluation.few_shot import write_few_shot
from tunesmith.evaluation.metrics.language import loss_of
from tunesmith.evaluation.results import write_scores
from tunesmith.modeling.parts import causal_lm
from tunesmith.rundir.events import FewShotEvent, RetainedEvent, Scores
from tunesmith.rundir.fence import require_newest
from tunesmith.training.distributed.stages import Stage
from tunesmith.training.rank_context import RankContext
from tunesmith.training.scoring import score_on_ranks


def evaluate_retained(context: RankContext, when: str, step: int) -> None:
    """Score the general rows (data.retain), if the recipe has any."""
    split = context.plan.data.retain
    if split is None:
        return
    with context.watchdog.stage(Stage.RETAINED, step):
        scores = _score(context, TokenIndex.open(Path(split.index)), context.run.retained(step), f"retain-{when}")
        context.journal.write(RetainedEvent(step=step, when=when, scores=scores))


def evaluate_few_shot(context: RankContext) -> None:
    """Score the validation rows, each after a few training rows, if the recipe sets evaluation.few_shot."""
    num_shots, split = context.plan.recipe.evaluation.few_shot, context.plan.data.validation
    if not num_shots or split is None:
        return
    train, held_out = (TokenIndex.open(Path(part.index)) for part in (context.plan.data.train, split))
    length = getattr(causal_lm(context.engine.loss_module.model).config, "max_position_embeddings", None) or 2048
    # Each rank writes its own copy: it is small, identical on all ranks, and deleted after scoring.
    prefix = "tunesmith-few-shot-"
    with context.watchdog.stage(Stage.FEW_SHOT, 0), tempfile.TemporaryDirectory(prefix=prefix) as directory:
        shots = write_few_shot(Path(directory), train, held_out, context.tokenizer, shots=num_shots, context=length)
        scores = _score(context, TokenIndex.open(Path(directory)), context.run.few_shot, "few-shot")
        context.journal.write(FewShotEvent(step=0, shots=shots, scores=scores))


def _score(context: RankContext, index: TokenIndex, path: Path, name: str) -> Scores:
    """Score the rows and write the scores; empty on all ranks except the first. name: see `score_on_ranks`."""
    scores = score_on_ranks(context, index, name)
    if scores is None:
        return Scores.from_json({})
    require_newest(context.run, context.attempt)
    write_scores(path, scores)
    return Scores.from_json(asdict(loss_of(scores)))
