"""What scoring gives: sums by example, kept as a file an evaluation. No torch here: a report reads the files alone."""

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
    """Sums by example (a row of the user's files), ordered by row id; N examples.

    row: int64 [N], row ids, each once. loss_sum: float64 [N], nats over the supervised tokens.
    num_tokens: int64 [N], supervised tokens; 0 where nothing of the row is a target. num_correct: int64 [N], of these
    the ones that the model ranks first. num_bytes: int64 [N], UTF-8 bytes of the supervised text; None: not counted.
    """

    row: np.ndarray
    loss_sum: np.ndarray
    num_tokens: np.ndarray
    num_correct: np.ndarray
    num_bytes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row)


def write_scores(path: Path, scores: ExampleScores) -> None:
    """One JSON object a line, in place of whatever stood there: {"id", "loss", "num_tokens", "num_correct", ...}.

    id: the row. loss: mean over its supervised tokens, nats; null where there are none. loss_sum, num_bytes: as in
    ExampleScores, the latter where it was counted. Numbers that are not finite are written as strings, JSON has none.
    """
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in score_lines(scores)))


def score_lines(scores: ExampleScores) -> list[dict[str, Any]]:
    """The objects that `write_scores` writes."""
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
    """What `write_scores` wrote, to the last bit. RunFault with the line that is damaged."""
    rows: list[dict[str, Any]] = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                raw = json.loads(line)
                if "loss_sum" in raw:
                    raw["loss_sum"] = float(raw["loss_sum"])
                else:  # written before the sums were kept: within a rounding
                    raw["loss_sum"] = (0.0 if raw["loss"] is None else float(raw["loss"])) * int(raw["num_tokens"])
                rows.append({key: raw[key] for key in ("id", "num_tokens", "num_correct")} | raw)
            except (ValueError, KeyError, TypeError) as error:
                raise RunFault(
                    f"a line of the evaluation is damaged ({error})",
                    where=f"{path}:{number}",
                    remedy="delete the file; the run's events keep the totals, `tunesmith evaluate` scores again",
                ) from error
    counted = bool(rows) and all("num_bytes" in raw for raw in rows)
    return ExampleScores(
        row=np.array([raw["id"] for raw in rows], dtype=np.int64),
        loss_sum=np.array([raw["loss_sum"] for raw in rows], dtype=np.float64),
        num_tokens=np.array([raw["num_tokens"] for raw in rows], dtype=np.int64),
        num_correct=np.array([raw["num_correct"] for raw in rows], dtype=np.int64),
        num_bytes=np.array([raw["num_bytes"] for raw in rows], dtype=np.int64) if counted else None,
    )
