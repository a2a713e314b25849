"""An evaluation job as a directory, on which any number of processes can work.

    job.json       model and requests                  queue.lock     locks of the batches in progress
    batches.json   batches of requests, in order       claims.jsonl   process and start time of each batch
    results/       one file per completed batch        error.json     error that stopped the evaluation

A job has one model. A part is one kind of request over one token index: `score` (log-likelihood of the supervised
tokens) or `generate` (an answer to the last prompt of each row). The directory is named by the fingerprint of job.json,
so that results are reused by the same evaluation only.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError, RunFault
from tunesmith.evaluation.answers import prompt_length
from tunesmith.evaluation.results import ExampleScores
from tunesmith.evaluation.score import DocumentScore, batches, batches_of, budget_of, score_documents, scores_of
from tunesmith.evaluation.work_queue import Queue
from tunesmith.inference.types import Sampling
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.rundir.atomic import write_json

SCHEMA = 1


@dataclass(frozen=True)
class JobPart:
    """name: unique in its job. index: absolute directory of a token index. documents: numbers in the index; None: all.
    sampling: for a `generate` part."""

    name: str
    kind: Literal["score", "generate"]
    index: str
    documents: list[int] | None = None
    sampling: Sampling | None = None


@dataclass(frozen=True)
class Answered:
    """One generated answer. row: row id. reference: the answer in the data. num_tokens: number of generated tokens."""

    row: int
    prompt: str
    reference: str
    output: str
    stopped: bool
    num_tokens: int


@dataclass(frozen=True)
class EvaluationJob:
    """model: argument of `find_subject`, absolute if it is a path. fingerprint: of the model's files.
    max_tokens, max_sequences: limits of a batch; max_sequences None: no limit."""

    model: str
    fingerprint: str
    parts: list[JobPart]
    max_tokens: int
    max_sequences: int | None

    @property
    def name(self) -> str:
        """Name of the job's directory."""
        return sha256(self._text().encode("utf-8")).hexdigest()[:16]

    def open(self, directory: Path) -> Queue:
        """Return the queue of the job; create its directory if it does not exist."""
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "job.json").is_file():
            write_json(directory / "batches.json", [[place, batch] for place, batch in self._batches()])
            write_json(directory / "job.json", json.loads(self._text()))
        return Queue(directory, len(read_batches(directory)))

    def _batches(self) -> Iterator[tuple[int, list[int]]]:
        """(part, documents), generation first: its batches take longest."""
        for kind in ("generate", "score"):
            for place, part in enumerate(self.parts):
                if part.kind == kind:
                    yield from ((place, batch) for batch in self._batches_of(part))

    def _batches_of(self, part: JobPart) -> Iterator[list[int]]:
        index = TokenIndex.open(Path(part.index))
        documents = list(range(index.num_documents)) if part.documents is None else part.documents
        if part.kind == "score":
            yield from batches_of(index, documents, self.max_tokens, self.max_sequences)
            return
        assert part.sampling is not None
        lengths = {}
        for document in documents:
            if (length := prompt_length(index.document(document).supervised)) is not None:
                lengths[document] = length + (part.sampling.max_new_tokens or index.max_seq_len)
        yield from batches(lengths, self.max_tokens, self.max_sequences)

    def _text(self) -> str:
        parts = [{**vars(part), "sampling": _sampling_record(part.sampling)} for part in self.parts]
        return json.dumps({"schema": SCHEMA, **vars(self), "parts": parts}, sort_keys=True)


def read_job(directory: Path) -> EvaluationJob:
    """Read job.json. Raises InputError if the directory contains no job of this version."""
    try:
        raw = json.loads((directory / "job.json").read_text(encoding="utf-8"))
        if raw.pop("schema") != SCHEMA:
            raise ValueError("it was written by a different version")
        return EvaluationJob(**{**raw, "parts": [_part(part) for part in raw["parts"]]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"not a valid evaluation job: {error}",
            where=str(directory),
            remedy="`tunesmith evaluate --out DIR` creates jobs in DIR/work",
        ) from error


def read_batches(directory: Path) -> list[tuple[int, list[int]]]:
    """Return (part, documents) of each batch, in queue order."""
    return [(part, batch) for part, batch in json.loads((directory / "batches.json").read_text(encoding="utf-8"))]


def scores_of_part(directory: Path, name: str) -> ExampleScores:
    """Return the results of a `score` part so far, ordered by row."""
    return scores_of(
        [DocumentScore(**{**raw, "loss_sum": float(raw["loss_sum"])}) for raw in _records(directory, name)]
    )


def answers_of_part(directory: Path, name: str) -> list[Answered]:
    """Return the results of a `generate` part so far, ordered by row."""
    return sorted((Answered(**raw) for raw in _records(directory, name)), key=lambda answer: answer.row)


def score_from_queue(
    model: CausalLoss, index: TokenIndex, directory: Path, tokenizer: Tokenizer | None = None
) -> ExampleScores:
    """Like `score_index`, but shared by all processes that call this with the same weights, index and directory.

    Returns when every batch is done, in each process with the complete result.
    """
    plan = batches_of(index, range(index.num_documents), budget_of(model))
    queue = Queue(directory, len(plan))
    for number in queue.pull():
        queue.finish(number, [score.as_json() for score in score_documents(model, index, plan[number], tokenizer)])
    if missing := [number for number in range(len(plan)) if not queue.is_done(number)]:
        raise RunFault(
            f"the results of batch {missing[0]} of the evaluation are missing: they were deleted while it ran",
            where=str(directory),
            remedy="resume the run; nothing else may write to its directory",
        )
    records = (raw for number in range(len(plan)) for raw in queue.records_of(number))
    return scores_of([DocumentScore.from_json(raw) for raw in records])


def _records(directory: Path, name: str) -> Iterator[dict[str, Any]]:
    job, queue = read_job(directory), Queue(directory, len(read_batches(directory)))
    requested = next(index for index, part in enumerate(job.parts) if part.name == name)
    for number, (part, _) in enumerate(read_batches(directory)):
        if part == requested:
            yield from queue.records_of(number)


def _sampling_record(sampling: Sampling | None) -> dict[str, Any] | None:
    """The sampling options that affect answers; part of the job's fingerprint."""
    if sampling is None:
        return None
    return {name: getattr(sampling, name) for name in ("max_new_tokens", "temperature", "top_p", "seed", "stop")}


def _part(raw: dict[str, Any]) -> JobPart:
    sampling = raw["sampling"]
    if sampling is not None:
        sampling = Sampling(**{**sampling, "stop": tuple(sampling["stop"])})
    return JobPart(**{**raw, "sampling": sampling})
