"""What each tool has stored, read back with its own reader, equals the event log; also after a resume or a kill."""

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from tests.tracking import readers
from tests.tracking.conftest import Series, lines_from, lines_until, recorded_series
from tunesmith.configs.recipe import Recipe
from tunesmith.rundir.status import Status, read_status
from tunesmith.tracking.follow import follow
from tunesmith.tracking.process import __file__ as PROCESS_FILE
from tunesmith.tracking.state import read_state, state_file
from tunesmith.tracking.trackers import KINDS, options_of


@pytest.fixture(autouse=True)
def _mlflow_database(request):
    if "mlflow" in request.node.name:
        request.getfixturevalue("mlflow_server")


def send(tracked, kind: str) -> None:
    """Send what there is, as the process of a tracker does when its run has ended."""
    if kind == "trackio":  # reads the place of its database when it is imported
        command = [sys.executable, "-P", "-m", "tunesmith.tracking.process", str(tracked().run.root), "--tracker", kind]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    else:
        follow(tracked(), options_of(tracked().plan.recipe, kind))


def stored_by(kind: str, run) -> readers.Stored:
    read: dict[str, Callable[[], readers.Stored]] = {
        "tensorboard": lambda: readers.tensorboard(run.root),
        "mlflow": lambda: readers.mlflow(read_state(state_file(run, "mlflow")).run_id),
        "wandb": lambda: readers.wandb(run.root),
        "trackio": lambda: readers.trackio(run.root.parent / "trackio"),
    }
    return read[kind]()


def require_equal(stored: readers.Stored, expected: Series, kind: str) -> None:
    """Each step once, in order, with the value of the log; TensorBoard stores scalars in fp32."""
    assert stored.keys() == expected.keys()
    for key, series in expected.items():
        values = [
            (step, float(np.float32(value)) if kind == "tensorboard" else value) for step, value in series.items()
        ]
        assert stored[key] == values, key


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_ends_and_resumes_is_one_run_without_gaps_or_repeated_steps(run, tracked, kind):
    whole = run.events.read_text(encoding="utf-8")
    expected = recorded_series(run.events)
    done = read_status(run.status)
    run.events.write_text("".join(lines_until(run.events, 25)))
    Status("preempted", step=25).write(run.status)
    send(tracked, kind)
    first = read_state(state_file(run, kind))
    assert first.closed == "preempted"
    require_equal(stored_by(kind, run), recorded_series(run.events), kind)

    repeated = whole[: len(run.events.read_text(encoding="utf-8"))]
    run.events.write_text(whole)
    tail = "".join(lines_from(run.events, 21))
    run.events.write_text(repeated + tail)
    Status(done.phase, step=40).write(run.status)
    send(tracked, kind)
    second = read_state(state_file(run, kind))
    assert (second.run_id, second.closed) == (first.run_id, "done")
    require_equal(stored_by(kind, run), expected, kind)


def test_another_place_gets_a_run_of_its_own(run, tracked, with_tracking):
    send(tracked, "tensorboard")
    with_tracking("[{kind: tensorboard, directory: logs}]")
    send(tracked, "tensorboard")
    stored = readers.tensorboard_in(run.root.parent / "logs" / "run")
    require_equal(stored, recorded_series(run.events), "tensorboard")


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow", "trackio"])
def test_what_a_killed_process_has_sent_but_not_noted_is_not_sent_again(run, tracked, kind):
    """W&B hands its data to a process that is killed with it: see the test below."""
    send(tracked, kind)
    state = read_state(state_file(run, kind))
    state.last_steps, state.position = {}, 0
    state.write(state_file(run, kind))
    send(tracked, kind)
    require_equal(stored_by(kind, run), recorded_series(run.events), kind)


def test_wandb_data_that_was_lost_with_its_process_is_sent_again(run, tracked):
    script = f"""
import os, runpy, sys
from tunesmith.tracking.wandb import WandbTracker
WandbTracker.close = lambda tracker, outcome: os.kill(os.getpid(), 9)
sys.argv = ["process", {str(run.root)!r}, "--tracker", "wandb"]
runpy.run_path({PROCESS_FILE!r}, run_name="__main__")
"""
    killed = subprocess.run([sys.executable, "-P", "-c", script], stdin=subprocess.DEVNULL, capture_output=True)
    assert killed.returncode == -9
    run_id = read_state(state_file(run, "wandb")).run_id
    send(tracked, "wandb")
    assert read_state(state_file(run, "wandb")).run_id == run_id
    require_equal(readers.wandb(run.root), recorded_series(run.events), "wandb")


def test_tensorboard_has_the_configuration_as_text_and_hyperparameters(run, tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    send(tracked, "tensorboard")
    accumulator = EventAccumulator(str(run.tensorboard))
    accumulator.Reload()
    texts = {tag.removesuffix("/text_summary") for tag in accumulator.Tags()["tensors"]}
    assert {"recipe", "plan", "receipts", "report", "export", "outcome"} <= texts
    (recipe,) = [event.tensor_proto.string_val[0].decode() for event in accumulator.Tensors("recipe")]
    assert "| optimization.learning_rate | `0.005` |" in recipe
    assert "_hparams_/session_start_info" in accumulator.summary_metadata


def test_mlflow_has_parameters_tags_and_artifacts(run, tracked, with_tracking):
    from mlflow import MlflowClient

    with_tracking("[{kind: mlflow, experiment: demo, run_name: first, tags: {team: a}, log_model: true}]")
    send(tracked, "mlflow")
    client = MlflowClient()
    stored = client.get_run(read_state(state_file(run, "mlflow")).run_id)
    assert client.get_experiment(stored.info.experiment_id).name == "demo"
    assert (stored.info.run_name, stored.info.status) == ("first", "FINISHED")
    assert stored.data.params["recipe.optimization.learning_rate"] == "0.005"
    assert stored.data.params["plan.batch.total_steps"] == "40"
    assert stored.data.tags["team"] == "a"
    assert stored.data.tags["receipts.fates.kept"] == "40"
    artifacts = {
        file.path
        for place in ("report", "receipts", "export")
        for file in client.list_artifacts(stored.info.run_id, place)
    }
    assert {"report/report.html", "receipts/summary.json", "export/model.safetensors"} <= artifacts


def test_the_offline_files_of_wandb_have_configuration_and_artifacts(run, tracked, with_tracking):
    from tunesmith.tracking.wandb_files import records

    with_tracking("[{kind: wandb, project: demo, entity: team, name: first, tags: [a, b], group: g}]")
    send(tracked, "wandb")
    (path,) = (run.root / "wandb").glob("offline-run-*/*.wandb")
    by_kind: dict[str, list] = {}
    for record in records(path):
        by_kind.setdefault(record.WhichOneof("record_type"), []).append(record)
    (started,) = [record.run for record in by_kind["run"]]
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert (started.project, started.entity, started.display_name) == ("demo", "team", "first")
    assert (list(started.tags), started.run_group) == (["a", "b"], "g")
    assert config["recipe"]["optimization"]["learning_rate"] == 0.005
    assert config["receipts"]["fates"]["kept"] == 40
    stored = {record.request.log_artifact.artifact.name for record in by_kind.get("request", [])}
    stored |= {record.artifact.name for record in by_kind.get("artifact", [])}
    assert stored == {"finished-report", "finished-receipts"}  # the export is a full model
    assert by_kind["exit"][-1].exit.exit_code == 0


def test_secrets_appear_in_no_configuration_state_or_log(run, tracked, with_tracking, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with_tracking("[tensorboard, wandb]")
    plan = tracked().plan
    data = plan.recipe.data.model_copy(update={"train": ["https://user:hunter2@host/rows.jsonl?X-Amz-Signature=abc"]})
    recipe: Recipe = plan.recipe.model_copy(update={"data": data})
    plan.model_copy(update={"recipe": recipe}).write(run.plan)
    assert tracked().configuration["recipe"]["data"]["train"] == ["https://host/rows.jsonl"]
    send(tracked, "tensorboard")
    send(tracked, "wandb")
    written = [run.tensorboard, run.tracking, run.root / "wandb", run.logs]
    for path in (file for place in written for file in place.rglob("*") if file.is_file()):
        content = path.read_bytes()
        for secret in (b"k" * 40, b"hunter2", b"X-Amz-Signature"):
            assert secret not in content, path
