"""What is measured beside the validation loss: general rows before and after (forgetting), and the untrained model with
training rows in its prompt (would prompting have done?)."""

import tempfile
from dataclasses import asdict
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.evaluation.few_shot import write_few_shot
from tunesmith.evaluation.metrics.language import loss_of
from tunesmith.evaluation.results import write_scores
from tunesmith.modeling.parts import causal_lm
from tunesmith.rundir.paths import RunDir
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.protocol import Engine
from tunesmith.training.journal import Journal
from tunesmith.training.scoring import score_on_ranks


class Beside:
    """Holds what these evaluations need; every rank calls."""

    def __init__(self, run: RunDir, plan: Plan, engine: Engine, tokenizer: Tokenizer, ranks: Ranks, journal: Journal):
        self.run, self.plan, self.engine = run, plan, engine
        self.tokenizer, self.ranks, self.journal = tokenizer, ranks, journal

    def before(self, told: set[tuple[str, str | None]]) -> None:
        """Of the untrained model; told: kind and `when` of the events of earlier attempts, the same on every rank:
        what they have measured is not measured again."""
        if ("retained", "before") not in told:
            self._retained("before", 0)
        if ("few_shot", None) not in told:
            self._few_shot()

    def after(self, step: int) -> None:
        self._retained("after", step)

    def _retained(self, when: str, step: int) -> None:
        split = self.plan.data.retain
        if split is None:
            return
        facts = self._score(TokenIndex.open(Path(split.index)), self.run.retained(step))
        self.journal.event("retained", step=step, when=when, **facts)

    def _few_shot(self) -> None:
        wanted, split = self.plan.recipe.evaluation.few_shot, self.plan.data.validation
        if not wanted or split is None:
            return
        train, held_out = (TokenIndex.open(Path(part.index)) for part in (self.plan.data.train, split))
        context = getattr(causal_lm(self.engine.loss_module.model).config, "max_position_embeddings", None) or 2048
        # Each rank writes its own: it is small, the same everywhere, and gone after the scoring.
        with tempfile.TemporaryDirectory(prefix="tunesmith-few-shot-") as place:
            shots = write_few_shot(Path(place), train, held_out, self.tokenizer, shots=wanted, context=context)
            facts = self._score(TokenIndex.open(Path(place)), self.run.few_shot)
        self.journal.event("few_shot", step=0, shots=shots, **facts)

    def _score(self, index: TokenIndex, path: Path) -> dict:
        """Score and store; the numbers, empty on ranks but the first."""
        place = self.run.evaluations / "work"
        scores = score_on_ranks(self.engine, self.ranks, index, self.tokenizer, place)
        if scores is None:
            return {}
        write_scores(path, scores)
        return asdict(loss_of(scores))
