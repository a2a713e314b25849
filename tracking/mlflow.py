"""MLflow, through its client: a tracking server, or a database of this machine (mlflow-skinny with SQLAlchemy)."""

import json
import os
from collections.abc import Sequence
from typing import Any

from tunesmith.configs.sections.trackers import MLflow
from tunesmith.tracking.configuration import flat
from tunesmith.tracking.metrics import Point
from tunesmith.tracking.state import TrackerState
from tunesmith.tracking.tracker import Artifact, Tracked

BATCH = 1000
"""MLflow's limit of metrics in one request; that of parameters is a tenth of it."""
MAX_VALUE = 6000
MAX_KEY = 250
DEFAULT_EXPERIMENT = "tunesmith"
STATUS = {"done": "FINISHED", "early_stopped": "FINISHED", "preempted": "KILLED", "failed": "FAILED"}


class MLflowTracker:
    def __init__(self, options: MLflow, tracked: Tracked):
        self._options, self._tracked = options, tracked
        self._client: Any = None
        self._run_id = ""

    def open(self, state: TrackerState) -> dict[str, int]:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self._options.tracking_uri)
        if state.run_id:
            self._run_id = state.run_id
            run = self._client.get_run(self._run_id)
            if run.info.status != "RUNNING":
                self._client.update_run(self._run_id, status="RUNNING")
            return {_key_of(metric.key): metric.step for metric in run.data._metric_objs}
        self._run_id = self._create()
        state.run_id, state.url = self._run_id, self._url()
        return {}

    def send(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(metric_name(point.group, point.name), point.value, int(point.time * 1000), point.step)
            for point in points
        ]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + BATCH])

    def store(self, artifact: Artifact) -> None:
        if artifact.path.is_dir():
            self._client.log_artifacts(self._run_id, str(artifact.path), artifact.name)
        else:
            self._client.log_artifact(self._run_id, str(artifact.path), artifact.name)

    def close(self, outcome: str) -> None:
        self._client.set_tag(self._run_id, "outcome", outcome)
        self._client.set_terminated(self._run_id, STATUS.get(outcome, "FAILED"))

    def _create(self) -> str:
        from mlflow.entities import Param

        name = self._options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        receipts = {
            path: _text(value) for path, value in flat(self._tracked.configuration.get("receipts", {}), ".", "receipts")
        }
        run = self._client.create_run(
            experiment_id,
            run_name=self._options.run_name or self._tracked.name,
            tags={**receipts, **self._options.tags},
        )
        sections = {key: self._tracked.configuration[key] for key in ("recipe", "plan")}
        params = [Param(path[:MAX_KEY], _text(value)) for path, value in flat(sections)]
        for start in range(0, len(params), BATCH // 10):
            self._client.log_batch(run.info.run_id, params=params[start : start + BATCH // 10])
        return run.info.run_id

    def _url(self) -> str:
        uri = self._client.tracking_uri
        if not uri.startswith("http"):
            return ""
        experiment_id = self._client.get_run(self._run_id).info.experiment_id
        return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{self._run_id}"


def metric_name(group: str, name: str) -> str:
    """The name as MLflow's integrations write it: `loss` of training, `eval_loss` of an evaluation."""
    return name if group == "train" else f"{group}_{name}"


def _key_of(metric: str) -> str:
    """The key of the points with this name (`Point.key`)."""
    for group in ("eval", "final", "retain", "few_shot"):
        if metric.startswith(f"{group}_"):
            return f"{group}/{metric[len(group) + 1 :]}"
    return f"train/{metric}"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."
