"""Reads back what a tracker has stored, with the tool's own reader, as lists: a repeated step would be seen."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

Stored = dict[str, list[tuple[int, float]]]


def tensorboard(run: Path) -> Stored:
    return tensorboard_in(run / "tensorboard")


def tensorboard_in(directory: Path) -> Stored:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def mlflow(run_id: str) -> Stored:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    groups = ("eval", "final", "retain", "few_shot")
    stored = {}
    for name in client.get_run(run_id).data.metrics:
        group = next((group for group in groups if name.startswith(f"{group}_")), "train")
        key = f"{group}/{name.removeprefix(f'{group}_')}"
        stored[key] = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
    return stored


def wandb(run: Path) -> Stored:
    """wandb's messages, from the records of its offline files."""
    from tunesmith.tracking.wandb_files import history

    stored: Stored = {}
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for step, row in history(path):
            for key, value in row.items():
                if not key.startswith("_"):
                    stored.setdefault(key, []).append((step, value))
    return stored


def trackio(directory: Path, project: str = "tunesmith") -> Stored:
    stored: Stored = {}
    with closing(sqlite3.connect(directory / f"{project}.db")) as database:
        rows = database.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
    for step, text in rows:
        for key, value in json.loads(text).items():
            stored.setdefault(key, []).append((step, value))
    return stored
