"""The planner's inputs without files: recipes, and facts of models and data."""

from collections.abc import Callable

import pytest

from tests.event_lines import an_event
from tunesmith.configs.load import load_recipe_text
from tunesmith.configs.plan import DataFacts, ModelFacts, SplitFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, Status

RECIPE = """\
name: support-bot
model: {base: models/some}
task: chat
method: {kind: lora, lora_rank: 16, lora_alpha: 32, target_modules: all-linear}
data: {train: [support.jsonl], validation: 0.1, max_seq_len: 512, packing: false}
optimization: {global_batch_size: 8, epochs: 1, warmup_fraction: 0.03}
seed: 7
"""


@pytest.fixture(scope="session")
def a_recipe() -> Callable[..., Recipe]:
    """a_recipe("optimization.epochs=2", ...) -> Recipe"""
    return lambda *overrides: load_recipe_text(RECIPE, overrides=overrides)


@pytest.fixture(scope="session")
def a_model() -> Callable[..., ModelFacts]:
    """a_model(**changes) -> ModelFacts with the shape of SmolLM2-135M."""

    def make(**changes) -> ModelFacts:
        facts = {
            "directory": "/models/some",
            "source": "models/some",
            "fingerprint": "m" * 64,
            "model_type": "llama",
            "num_layers": 30,
            "hidden_size": 576,
            "vocab_size": 49152,
            "num_params": 134_515_008,
            "num_trained_params": 4_884_480,
            "tied_embeddings": True,
        }
        return ModelFacts.model_validate({**facts, **changes})

    return make


@pytest.fixture(scope="session")
def some_data() -> Callable[..., DataFacts]:
    """some_data(num_samples, longest_tokens=..., mean_tokens=..., validation=...) -> DataFacts"""

    def split(num_samples: int, longest: int, mean: int) -> SplitFacts:
        return SplitFacts(
            index="/cache/index/x/train",
            num_rows=num_samples,
            num_samples=num_samples,
            num_tokens=num_samples * mean,
            supervised_tokens=num_samples * mean // 2,
            longest_tokens=longest,
        )

    def make(
        num_samples: int = 100, longest_tokens: int = 512, mean_tokens: int = 500, validation: int = 10
    ) -> DataFacts:
        return DataFacts(
            fingerprint="d" * 64,
            train=split(num_samples, longest_tokens, mean_tokens),
            validation=split(validation, longest_tokens, mean_tokens) if validation else None,
            num_rejected=0,
            num_dropped=0,
            num_truncated=0,
            num_duplicates=0,
        )

    return make


@pytest.fixture
def make_run(tmp_path, a_recipe, a_model, some_data):
    """make_run("name", phase, losses) -> RunDir under tmp_path/runs with the files of a run with that many steps."""

    def make(name: str, phase: str = "done", losses: tuple[float, ...] = (3.0, 2.5, 2.0)) -> RunDir:
        run = RunDir(tmp_path / "runs" / name)
        run.create()
        hardware = Hardware(2, "cores of this machine", 16 << 30, "free on this machine", frozenset())
        make_plan(a_recipe(f"name={name}"), a_model(), some_data(8 * len(losses)), hardware).write(run.plan)
        log = EventLog(run.events)
        log.write(an_event("phase", phase="loading"))
        log.write(an_event("start", attempt=1, step=0, world_size=1, pid=1, host="here", resumed_from=None))
        scores = {"perplexity": 20.0, "token_accuracy": 0.25, "num_examples": 10, "num_tokens": 500, "seconds": 1.0}
        log.write(an_event("evaluation", step=0, when="before", loss=3.25, **scores))
        for step, loss in enumerate(losses, 1):
            numbers = {"tokens_per_s": 100.0, "step_s": 1.0, "num_tokens": 100, "supervised_tokens": 50}
            log.write(an_event("step", step=step, total_steps=len(losses), loss=loss, skipped=False, **numbers))
        if phase == "done":
            log.write(an_event("evaluation", step=len(losses), when="after", loss=1.75, **scores))
            log.write(
                an_event(
                    "export", path=str(run.export), form="adapter", gate={"max_logit_difference": 1e-6, "passed": True}
                )
            )
            run.export.mkdir()
        if phase in FINAL:
            code = {"done": 0, "preempted": 75}.get(phase, 1)
            log.write(an_event("end", outcome=phase, step=len(losses), exit_code=code, seconds=3.0))
        log.close()
        Status(phase, len(losses), len(losses), 1, started=1_800_000_000.0 + len(losses)).write(run.status)
        return run

    return make
