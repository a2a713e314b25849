"""One attempt of a run on a real engine, for tests of saving, resuming and finishing."""

from tests.training.export.test_export import Trained
from tunesmith.configs.plan import Plan
from tunesmith.modeling.adapters.method import trained_parameters
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import WarningEvent
from tunesmith.rundir.ledger import Ledger
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoint.mirror import Mirror
from tunesmith.training.checkpoint.resume import resume
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.interruption import Interruption
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.distributed.watchdog import Watchdog
from tunesmith.training.engine.plain import PlainEngine
from tunesmith.training.journal import Journal
from tunesmith.training.rank_context import RankContext
from tunesmith.training.saving import Saving

ALONE = Ranks(0, 0, 1)


class Attempt:
    """A real engine, a run directory and a mirror; tests set the step."""

    def __init__(self, trained: Trained, run: RunDir, url: str, plan: Plan | None = None, ranks: Ranks = ALONE):
        run.create()
        self.run, self.plan, self.state = run, plan or trained.plan, RunState()
        parameters = trained_parameters(trained.model)
        engine = PlainEngine(trained.loss, parameters, self.plan.recipe.optimization, ranks, device="cpu")
        journal = Journal(run, ranks, attempt=1, total_steps=9)
        watchdog = Watchdog(run, ranks, 1, hang_timeout_s=300.0, stage_timeout_s=3600.0)
        self.context = RankContext(run, self.plan, 1, ranks, journal, engine, trained.tokenizer, watchdog)
        self.mirror, self.interruption = Mirror(url, run, 1) if ranks.is_first else None, Interruption()

    def resume(self) -> RunState:
        self.state, _ = resume(self.context, self.mirror)
        return self.state

    def saving(self) -> Saving:
        return Saving(self.context, self.state, Ledger(self.run, 0, 1), self.interruption, self.mirror)

    def save(self, step: int, reason: str) -> None:
        saving = self.saving()
        self.state.step = step
        saving.save(reason)

    def warnings(self) -> list[str]:
        return [str(event.message) for event in read_events(self.run.events, WarningEvent)]
