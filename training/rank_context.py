"""State shared by the stages of one rank, from the loaded model to the export: evaluation, saving and finishing."""

from dataclasses import dataclass

from tunesmith.configs.plan import Plan
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.rundir.paths import RunDir
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.distributed.watchdog import Watchdog
from tunesmith.training.engine.protocol import Engine
from tunesmith.training.journal import Journal


@dataclass(frozen=True)
class RankContext:
    """Run, plan and components of one rank."""

    run: RunDir
    plan: Plan
    attempt: int
    ranks: Ranks
    journal: Journal
    engine: Engine
    tokenizer: Tokenizer
    watchdog: Watchdog

    @property
    def generates(self) -> bool:
        """Whether this rank takes part in generation: only the first, or all if the model is sharded."""
        return self.ranks.is_first or self.engine.sharded
