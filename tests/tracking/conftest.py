"""A recorded run of an earlier version, whose events the trackers receive, and what they should have stored."""

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.event_lines import event_lines
from tunesmith.configs.load import load_recipe_text
from tunesmith.configs.plan import read_plan
from tunesmith.rundir.paths import RunDir
from tunesmith.tracking.configuration import configuration_of
from tunesmith.tracking.tracker import Tracked

FIXTURE = Path(__file__).parents[1] / "fixtures" / "cf466db" / "finished.tar.gz"
STEPS = {
    *("loss", "learning_rate", "grad_norm", "tokens_per_s", "token_accuracy", "epoch", "step_s"),
    *("num_tokens", "supervised_tokens", "peak_memory_bytes"),
}
SCORES = {"loss", "perplexity", "token_accuracy", "bits_per_byte"}
Series = dict[str, dict[int, float]]


@pytest.fixture(scope="session")
def recorded(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("recorded")
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(directory, filter="data")
    return directory / "finished" / "run"


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory) -> Path:
    """An empty database: creating its tables takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        MlflowClient(tracking_uri=f"sqlite:///{path}").get_experiment_by_name("none")
    return path


@pytest.fixture
def mlflow_server(mlflow_database, tmp_path) -> Path:
    """The database that MLFLOW_TRACKING_URI names."""
    return shutil.copyfile(mlflow_database, tmp_path / "mlflow.db")


@pytest.fixture
def run(recorded, tmp_path, monkeypatch) -> RunDir:
    """A copy of the run: 40 steps, 4 evaluations, a report and an export. The working directory is its parent, and no
    tracker finds an account or a server in the environment."""
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(recorded, tmp_path / "run")
    return RunDir(tmp_path / "run")


@pytest.fixture
def tracked(run, tmp_path) -> Callable[[], Tracked]:
    """tracked() -> the run as trackers see it, with the plan that it has now."""

    def make() -> Tracked:
        plan = read_plan(run.plan)
        return Tracked(run, plan, configuration_of(run, plan), tmp_path)

    return make


@pytest.fixture
def with_tracking(run) -> Callable[[str], None]:
    """with_tracking("[tensorboard]"): set the key in the plan of the run."""

    def write(value: str) -> None:
        plan = read_plan(run.plan)
        recipe = load_recipe_text(plan.recipe.model_dump_json(), overrides=[f"tracking={value}"])
        plan.model_copy(update={"recipe": recipe, "working_dir": str(run.root.parent)}).write(run.plan)

    return write


def recorded_series(events: Path) -> Series:
    """Every metric of a log by key and step; of repeated steps the first. Read from the JSON lines alone."""
    series: Series = {}
    groups = {"retained": "retain", "few_shot": "few_shot"}
    for event in event_lines(events, "step", "evaluation", "retained", "few_shot"):
        kind = event["kind"]
        group = "train" if kind == "step" else groups.get(kind, "final" if event.get("when") == "after" else "eval")
        for name in STEPS if kind == "step" else SCORES:
            if isinstance(event.get(name), int | float):
                series.setdefault(f"{group}/{name}", {}).setdefault(event["step"], float(event[name]))
    return series


def lines_until(events: Path, step: int) -> list[str]:
    """The lines of a log up to the event of a step."""
    return list(_until(events.read_text(encoding="utf-8").splitlines(keepends=True), step))


def lines_from(events: Path, step: int) -> list[str]:
    """The lines of a log from the event of a step: what a run writes that resumes from the checkpoint before it."""
    lines = events.read_text(encoding="utf-8").splitlines(keepends=True)
    return lines[len(list(_until(lines, step))) - 1 :]


def _until(lines: list[str], step: int) -> Iterator[str]:
    for line in lines:
        yield line
        event = json.loads(line)
        if event["kind"] == "step" and event["step"] == step:
            return
