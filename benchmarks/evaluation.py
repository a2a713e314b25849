"""Scaling and memory of evaluation: `python benchmarks/evaluation.py [MODEL]`.

1. Two processes on one queue compared with two independent evaluations of half the rows each, alternately, with the
same
   loaded models: rows per second of the slower process (wall) and rows per CPU second of both.
2. Peak memory above the loaded model while scoring one batch, compared with the same batch with all logits in memory
   (transformers, log-softmax over all logits), each in a separate process.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import machine
import numpy as np
import torch

from tunesmith.data.index.token_index import TokenIndex, write_index
from tunesmith.evaluation.job import EvaluationJob, JobPart
from tunesmith.evaluation.score import score_documents
from tunesmith.evaluation.subject import find_subject
from tunesmith.evaluation.worker import work

BATCH_TOKENS = 512


def make_rows(directory: Path, vocab: int, count: int, seed: int) -> Path:
    """Write documents of unequal length (20 to 200 tokens); the second half of each is supervised."""
    generator = np.random.default_rng(seed)
    documents = []
    for row in range(count):
        length = int(np.clip(generator.lognormal(4.0, 0.5), 20, 200))
        flags = np.arange(length) >= length // 2
        documents.append((generator.integers(3, vocab, length).tolist(), flags.tolist(), row))
    return write_index(directory, documents, max_seq_len=1024).directory


def make_job(model: str, index: Path, documents: list[int] | None, directory: Path) -> Path:
    job = EvaluationJob(model, "benchmark", [JobPart("rows", "score", str(index), documents)], BATCH_TOKENS, None)
    job.open(directory)
    return directory


def share(rank: int, model: str, directories: list[list[str]], barrier, results) -> None:
    """One process: run the jobs of each round and report wall and CPU seconds."""
    torch.set_num_threads(1)
    subject = find_subject(model)
    loaded = subject.load()
    index = TokenIndex.open(Path(directories[0][2]))
    score_documents(loaded, index, [0, 1], subject.tokenizer)  # warm up
    for number, round_ in enumerate(directories):
        barrier.wait()
        wall, cpu = time.perf_counter(), time.process_time()
        work(Path(round_[rank]), model=loaded)
        results.put((number, rank, time.perf_counter() - wall, time.process_time() - cpu))
        barrier.wait()


def measure_sharing(model: str, rows: int, pairs: int) -> dict:
    subject = find_subject(model)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        index = make_rows(folder / "index", subject.tokenizer.vocab_size, rows, 0)
        rounds = []
        for number in range(pairs):
            shared = make_job(model, index, None, folder / f"shared-{number}")
            halves = [
                make_job(model, index, list(range(half, rows, 2)), folder / f"half-{number}-{half}") for half in (0, 1)
            ]
            together, apart = [str(shared)] * 2 + [str(index)], [*map(str, halves), str(index)]
            rounds += [together, apart] if number % 2 == 0 else [apart, together]
        barrier, results = context.Barrier(2), context.Queue()
        processes = [context.Process(target=share, args=(r, model, rounds, barrier, results)) for r in (0, 1)]
        for process in processes:
            process.start()
        timings = [results.get() for _ in range(2 * len(rounds))]
        for process in processes:
            process.join()
    wall, cpu = [0.0] * len(rounds), [0.0] * len(rounds)
    for number, _, wall_s, cpu_s in timings:
        wall[number] = max(wall[number], wall_s)
        cpu[number] += cpu_s
    ratios: dict[str, list[float]] = {"wall": [], "cpu": []}
    for number in range(pairs):
        first, second = 2 * number, 2 * number + 1
        shared, halves = (first, second) if number % 2 == 0 else (second, first)
        ratios["wall"].append(wall[halves] / wall[shared])
        ratios["cpu"].append(cpu[halves] / cpu[shared])
    return {name: {"median": statistics.median(r), "all": [round(x, 3) for x in r]} for name, r in ratios.items()}


def peak_above_model(model: str, keep_logits: bool, tokens: int) -> int:
    """Return peak bytes in this process for a batch of equally long documents, with every token supervised."""
    torch.set_num_threads(1)
    subject = find_subject(model)
    length = 128
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        flags = [True] * length
        ids = [generator.integers(3, subject.tokenizer.vocab_size, length).tolist() for _ in range(tokens // length)]
        index = write_index(Path(temporary), [(row, flags, n) for n, row in enumerate(ids)], max_seq_len=1024)
        if keep_logits:
            from transformers import AutoModelForCausalLM

            plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
            run = lambda batch: torch.log_softmax(plain(torch.tensor(batch)).logits, -1)  # noqa: E731
            with torch.no_grad():
                run(ids[:1])
                before = resident_bytes()
                run(ids)
        else:
            loaded = subject.load()
            score_documents(loaded, index, [0])
            before = resident_bytes()
            score_documents(loaded, index, list(range(len(ids))))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def resident_bytes() -> int:
    """Return the resident bytes of this process and reset its peak (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure_memory(model: str, tokens: int) -> dict:
    peaks = {}
    for name, flag in (("scored", "--scored"), ("logits_kept", "--logits")):
        command = [sys.executable, __file__, model, flag, str(tokens)]
        peaks[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return {**peaks, "ratio": round(peaks["scored"] / peaks["logits_kept"], 3), "batch_tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="models/smollm2-135m")
    parser.add_argument("--rows", type=int, default=72)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    parser.add_argument("--scored", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--logits", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.scored or arguments.logits:
        keep = arguments.logits is not None
        print(peak_above_model(arguments.model, keep, arguments.logits or arguments.scored))
        return
    results = {
        "command": ["python", "benchmarks/evaluation.py", *sys.argv[1:]],
        "two_processes_of_two_independent": measure_sharing(arguments.model, arguments.rows, arguments.pairs),
        "memory": measure_memory(arguments.model, 2048),
    }
    table = [["quantity", "median", "low", "high"]]
    for kind, of in results["two_processes_of_two_independent"].items():
        values = [of["median"], min(of["all"]), max(of["all"])]
        table.append([f"two processes, relative to two independent ({kind})", *(f"{value:.3f}" for value in values)])
    table.append(["memory, relative to all logits in memory", f"{results['memory']['ratio']:.3f}", "", ""])
    machine.write("evaluation", results, table, arguments.results)


if __name__ == "__main__":
    main()
