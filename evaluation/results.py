"""Results of scoring: sums by row, stored in one file per evaluation. Torch-free: the report reads these files."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import RunFault
from tunesmith.rundir.atomic import write_text


@dataclass(frozen=True)
class ExampleScores:
    """Sums over the supervised tokens of N examples (rows of the user's files), ordered by row id.

    row: int64 [N], unique row ids. loss_sum: float64 [N], nats. num_tokens: int64 [N], supervised tokens, 0 if the row
    has no target. num_correct: int64 [N], supervised tokens that the model ranks first. num_bytes: int64 [N], UTF-8
    bytes of the supervised text; None: not counted.
    """

    row: np.ndarray
    loss_sum: np.ndarray
    num_tokens: np.ndarray
    num_correct: np.ndarray
    num_bytes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row)

    def of(self, chosen: np.ndarray) -> "ExampleScores":
        """Return the sums of some examples. chosen: bool [N]."""
        columns = (self.row, self.loss_sum, self.num_tokens, self.num_correct, self.num_bytes)
        return ExampleScores(*(None if column is None else column[chosen] for column in columns))  # pyright: ignore[reportArgumentType]


def write_scores(path: Path, scores: ExampleScores) -> None:
    """Write JSON Lines with {"id", "loss", "num_tokens", "num_correct", ...}, replacing the file.

    id: row id. loss: mean over the supervised tokens in nats, null if there are none. loss_sum, num_bytes: as in
    ExampleScores; num_bytes only if counted. Non-finite numbers are written as strings, since JSON has none.
    """
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in score_lines(scores)))


def score_lines(scores: ExampleScores) -> list[dict[str, Any]]:
    """Return the objects that `write_scores` writes."""
    columns = [scores.row, scores.loss_sum, scores.num_tokens, scores.num_correct]
    names = ["id", "loss_sum", "num_tokens", "num_correct"]
    if scores.num_bytes is not None:
        columns, names = [*columns, scores.num_bytes], [*names, "num_bytes"]
    lines = []
    for values in zip(*(column.tolist() for column in columns), strict=True):
        line = dict(zip(names, values, strict=True))
        loss_sum, num_tokens = line.pop("loss_sum"), line["num_tokens"]
        loss = _writable(loss_sum / num_tokens) if num_tokens else None
        lines.append({"id": line.pop("id"), "loss": loss, "loss_sum": _writable(loss_sum), **line})
    return lines


def _writable(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def read_scores(path: Path) -> ExampleScores:
    """Read a file of `write_scores`, bit for bit. Raises RunFault if a line is damaged."""
    rows: list[dict[str, Any]] = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                raw = json.loads(line)
                if "loss_sum" in raw:
                    raw["loss_sum"] = float(raw["loss_sum"])
                else:  # from a version that did not store sums: equal up to rounding
                    raw["loss_sum"] = (0.0 if raw["loss"] is None else float(raw["loss"])) * int(raw["num_tokens"])
                rows.append({key: raw[key] for key in ("id", "num_tokens", "num_correct")} | raw)
            except (ValueError, KeyError, TypeError) as error:
                raise RunFault(
                    f"a line of the evaluation is damaged ({error})",
                    where=f"{path}:{number}",
                    remedy="delete the file (the events keep the totals) and score again with `tunesmith evaluate`",
                ) from error
    counted = bool(rows) and all("num_bytes" in raw for raw in rows)
    return ExampleScores(
        row=np.array([raw["id"] for raw in rows], dtype=np.int64),
        loss_sum=np.array([raw["loss_sum"] for raw in rows], dtype=np.float64),
        num_tokens=np.array([raw["num_tokens"] for raw in rows], dtype=np.int64),
        num_correct=np.array([raw["num_correct"] for raw in rows], dtype=np.int64),
        num_bytes=np.array([raw["num_bytes"] for raw in rows], dtype=np.int64) if counted else None,
    )
