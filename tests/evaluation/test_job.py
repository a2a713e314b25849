"""Shared, shuffled, killed and resumed jobs give bit-identical results, with each example scored once."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.test_score import by_hand, make_documents
from tests.waiting import LIMIT_S, wait_for
from tests.warm_processes.pool import python_path
from tunesmith.data.index.token_index import TokenIndex, write_index
from tunesmith.errors import InputError, RunFault
from tunesmith.evaluation.job import (
    EvaluationJob,
    JobPart,
    answers_of_part,
    read_batches,
    score_from_queue,
    scores_of_part,
)
from tunesmith.evaluation.metrics.language import language
from tunesmith.evaluation.processes import require_done, run_job
from tunesmith.evaluation.subject import find_subject
from tunesmith.evaluation.work_queue import Queue
from tunesmith.inference.types import Sampling
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.losses.causal import CausalLoss

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def documents():
    return make_documents(384, count=60, longest=120)


@pytest.fixture(scope="module")
def index(documents, tmp_path_factory) -> Path:
    return write_index(tmp_path_factory.mktemp("index"), documents, max_seq_len=1024).directory


def make_job(model: Path, index: Path, *, max_sequences: int | None = 6, generate: bool = False) -> EvaluationJob:
    parts = [JobPart("rows", "score", str(index))]
    if generate:
        sampling = Sampling(max_new_tokens=6, temperature=0.7, seed=5)
        parts.append(JobPart("answers", "generate", str(index), documents=list(range(12)), sampling=sampling))
    return EvaluationJob(str(model), find_subject(str(model)).fingerprint(), parts, 2048, max_sequences)


def numbers(directory: Path) -> dict[str, tuple[float, float | None]]:
    return {name: (m.value, m.error) for name, m in language(scores_of_part(directory, "rows")).items()}


def claims(directory: Path) -> Counter:
    return Counter(json.loads(line)["batch"] for line in (directory / "claims.jsonl").read_text().splitlines())


def start_worker(python: str, directory: Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [python, "-P", "-m", "tunesmith.evaluation.worker", str(directory)],
        env={**os.environ, "PYTHONPATH": python_path(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def alone(tiny_llama, index, tmp_path_factory) -> Path:
    """The job, run in this process."""
    directory = tmp_path_factory.mktemp("alone")
    run_job(make_job(tiny_llama, index, generate=True), directory)
    return directory


def test_scores_equal_transformers_for_every_batch_size(tiny_llama, index, documents, tmp_path):
    expected = by_hand(tiny_llama, documents)
    by_size = {}
    for size in (1, 2, 3, 5, 8, 16, None):
        run_job(make_job(tiny_llama, index, max_sequences=size), tmp_path / str(size))
        scores = scores_of_part(tmp_path / str(size), "rows")
        assert scores.row.tolist() == sorted(expected)
        for row, loss_sum, count in zip(scores.row, scores.loss_sum, scores.num_tokens, strict=True):
            assert abs(loss_sum - expected[row][0]) <= 1e-5 * max(count, 1)
        by_size[size] = scores
    for scores in by_size.values():  # bit for bit
        assert np.array_equal(scores.loss_sum, by_size[1].loss_sum)
        assert np.array_equal(scores.num_correct, by_size[1].num_correct)
    assert len({tuple(map(tuple, numbers(tmp_path / str(size)).values())) for size in by_size}) == 1
    assert numbers(tmp_path / "1")["loss"][0] > 4.0


@pytest.mark.parametrize("workers", [2, 4])
def test_results_do_not_depend_on_the_number_of_workers(workers, alone, tiny_llama, index, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", python_path(ROOT))
    run_job(make_job(tiny_llama, index, generate=True), tmp_path, workers=workers)
    assert numbers(tmp_path) == numbers(alone)
    assert answers_of_part(tmp_path, "answers") == answers_of_part(alone, "answers")
    assert len(answers_of_part(alone, "answers")) == 11  # one of the twelve has no supervised token
    assert set(claims(tmp_path).values()) == {1}
    assert sum(claims(tmp_path).values()) == len(read_batches(tmp_path))


def test_results_do_not_depend_on_the_order_of_rows(alone, tiny_llama, documents, tmp_path):
    order = np.random.default_rng(4).permutation(len(documents))
    shuffled = [(*documents[i][:2], number) for number, i in enumerate(order)]
    index = write_index(tmp_path / "index", shuffled, max_seq_len=1024).directory
    run_job(make_job(tiny_llama, index), tmp_path / "job")
    assert numbers(tmp_path / "job") == numbers(alone)
    before, after = (scores_of_part(d, "rows") for d in (alone, tmp_path / "job"))
    position = {documents[i][2]: number for number, i in enumerate(order)}
    assert np.array_equal(after.loss_sum[[position[row] for row in before.row]], before.loss_sum)


@pytest.mark.parametrize("stage", ["evaluation.scored", "evaluation.stored"])
def test_killed_evaluation_resumes_and_repeats_at_most_one_batch(
    stage, alone, tiny_llama, index, tmp_path, warm_python
):
    job = make_job(tiny_llama, index, generate=True)
    job.open(tmp_path)
    lost = start_worker(warm_python, tmp_path, TUNESMITH_FAULT=f"{stage}:4=kill")
    assert lost.wait(LIMIT_S) == -signal.SIGKILL
    done = Queue(tmp_path, len(read_batches(tmp_path))).num_done()
    assert done == (3 if stage == "evaluation.scored" else 4)
    run_job(job, tmp_path)
    assert sum(claims(tmp_path).values()) - len(read_batches(tmp_path)) == (1 if stage == "evaluation.scored" else 0)
    assert numbers(tmp_path) == numbers(alone)
    assert answers_of_part(tmp_path, "answers") == answers_of_part(alone, "answers")


def test_batch_of_a_lost_worker_is_processed_by_another(alone, tiny_llama, index, tmp_path, warm_python):
    make_job(tiny_llama, index, generate=True).open(tmp_path)
    lost = start_worker(warm_python, tmp_path, TUNESMITH_FAULT="evaluation.scored=kill")
    wait_for(lambda: (tmp_path / "claims.jsonl").exists() or lost.poll() is not None)  # it holds a batch
    codes = [worker.wait(LIMIT_S) for worker in (lost, start_worker(warm_python, tmp_path))]
    assert codes == [-signal.SIGKILL, 0]
    again = sum(claims(tmp_path).values()) - len(read_batches(tmp_path))
    assert again == 1
    assert numbers(tmp_path) == numbers(alone)


def test_queue_waits_for_a_batch_held_by_another_process(tmp_path):
    code = (
        "import sys, time, pathlib; from tunesmith.evaluation.work_queue import Queue\n"
        "q = Queue(pathlib.Path(sys.argv[1]), 3)\n"
        "for n in q.pull():\n    print(n, flush=True); sys.stdin.readline(); q.finish(n, [{'by': 'other'}]); break\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path(ROOT)},
    )
    assert other.stdout.readline().strip() == "0"
    queue, mine = Queue(tmp_path, 3), []
    for number in queue.pull():
        mine.append(number)
        queue.finish(number, [{"by": "me"}])
        if number == 2:  # only the batch of the other process remains
            other.stdin.write("\n")
            other.stdin.flush()
    other.communicate(timeout=LIMIT_S)
    assert mine == [1, 2]
    assert [next(queue.records_of(n))["by"] for n in range(3)] == ["other", "me", "me"]


def test_worker_reports_why_it_cannot_load_the_model(tiny_llama, index, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", python_path(ROOT))
    job = make_job(tiny_llama, index)
    missing = EvaluationJob("./no/such/model", job.fingerprint, job.parts, job.max_tokens, job.max_sequences)
    with pytest.raises(InputError, match="does not exist"):
        run_job(missing, tmp_path / "missing", workers=2)
    with pytest.raises(RunFault, match=r"\d+ of \d+ batches remaining"):
        require_done(job.open(tmp_path / "lost"), tmp_path / "lost")


def test_completed_job_loads_no_model(alone, tiny_llama, index, monkeypatch):
    monkeypatch.setattr("tunesmith.evaluation.worker.find_subject", lambda target: pytest.fail("loaded"))
    run_job(make_job(tiny_llama, index, generate=True), alone)
    run_job(make_job(tiny_llama, index, generate=True), alone, workers=4)


def test_job_name_is_stable_between_versions():
    """The directory has this name, so that a newer version resumes a killed evaluation."""
    sampling = Sampling(6, temperature=0.7, seed=5, stop=("x",))
    parts = [JobPart("score", "score", "/i"), JobPart("answers", "generate", "/i", [0, 2], sampling)]
    assert EvaluationJob("m", "f", parts, 64, None).name == "7f3ee33d33e1979c"


def test_results_that_are_deleted_while_ranks_score_are_no_complete_result(tiny_llama, index, tmp_path):
    model = CausalLoss(load_model(tiny_llama, dtype=torch.float32, attention=PACKED))
    index, first = TokenIndex.open(index), tmp_path / "queue" / "results" / "batch-000000.jsonl"
    model.register_forward_pre_hook(lambda *_: first.unlink(missing_ok=True))
    with pytest.raises(RunFault, match="results of batch 0 of the evaluation are missing") as caught:
        score_from_queue(model, index, tmp_path / "queue")
    assert caught.value.where == str(tmp_path / "queue")
