"""Shards prepared by processes of their own, one a core. `python -m tunesmith.data.index.workers` is such a process.

Plain processes that speak JSON lines over pipes: a worker that is killed is named, and one whose parent is gone ends.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Queue
from typing import Any

from tunesmith.data.encoders.by_task import encoder_from, portable
from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.index.shard import prepare_shard
from tunesmith.data.readers.sources import Shard
from tunesmith.errors import InputError, RunFault

# The tokenizer frees the interpreter's lock while it works: where it makes all tokens, a few threads keep a few cores
# busy without the second that processes take to start. Pre-tokens seen before (pretoken_cache.py) are looked up under
# the lock, three times as fast: there processes, once that second is worth it (INLINE_BYTES take about 3 s on a core).
MAX_THREADS = 4
INLINE_BYTES = 16 << 20


def prepare_shards(
    shards: Sequence[Shard], encoder: RowEncoder, cache: Path, workers: int, done: Callable[[Shard], None]
) -> list[Path]:
    """The directories of the prepared shards, in order. done: called with each shard that is ready, from this thread.

    On a few cores with a tokenizer that frees them, or with little to do, threads of this process do it.
    Raises InputError as prepare_shard does, RunFault where a process dies.
    """
    size = sum(os.path.getsize(path) for path in {shard.path for shard in shards})
    few = workers <= MAX_THREADS and encoder.tokenizer.pretokens is None
    if few or min(workers, len(shards)) < 2 or size < INLINE_BYTES or encoder.tokenizer.directory is None:
        with _tokenizers_serial(), ThreadPoolExecutor(min(workers, MAX_THREADS)) as threads:
            results = threads.map(lambda shard: prepare_shard(shard, encoder, cache), shards)
            return _told(results, shards, threads, done)
    return _prepare_in_processes(shards, encoder, cache, min(workers, len(shards)), done)


def _prepare_in_processes(
    shards: Sequence[Shard], encoder: RowEncoder, cache: Path, workers: int, done: Callable[[Shard], None]
) -> list[Path]:
    pool: Queue[_Worker] = Queue()
    started: list[_Worker] = []
    try:
        for _ in range(workers):
            started.append(_Worker(encoder, cache))
            pool.put(started[-1])
        with ThreadPoolExecutor(workers) as threads:
            try:
                results = threads.map(lambda shard: _with_worker(pool, shard), shards)
                return _told(results, shards, threads, done)
            except BaseException:
                for worker in started:
                    worker.process.kill()
                raise
    finally:
        for worker in started:
            worker.close()


@contextmanager
def _tokenizers_serial() -> Iterator[None]:
    """The tokenizer's own threads off while ours call it: two layers of them wait for each other by spinning."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _told(
    results: Iterable[Path], shards: Sequence[Shard], threads: ThreadPoolExecutor, done: Callable[[Shard], None]
) -> list[Path]:
    """The results as they come, each one told; where one fails, those that have not begun are left."""
    paths = []
    try:
        for path, shard in zip(results, shards, strict=True):
            paths.append(path)
            done(shard)
    except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        raise
    return paths


def _with_worker(pool: "Queue[_Worker]", shard: Shard) -> Path:
    worker = pool.get()
    try:
        return worker.prepare(shard)
    finally:
        pool.put(worker)


class _Worker:
    """One process; `prepare` sends it a shard and waits for the answer."""

    def __init__(self, encoder: RowEncoder, cache: Path):
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith.data.index.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        self._send(json.dumps(str(cache)))
        self._send(portable(encoder))

    def prepare(self, shard: Shard) -> Path:
        self._send(shard.portable())
        answer = json.loads(self.process.stdout.readline() or "null")  # type: ignore[union-attr]
        if answer is None:
            raise self._died()
        if "error" in answer:
            what, where, remedy = answer["error"]
            raise InputError(what, where=where, remedy=remedy)
        return Path(answer["path"])

    def close(self) -> None:
        if self.process.stdin and not self.process.stdin.closed:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def _send(self, line: str) -> None:
        try:
            self.process.stdin.write(line + "\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError as error:
            raise self._died() from error

    def _died(self) -> RunFault:
        code = self.process.wait()
        how = f"by signal {-code} (9 is most often for want of memory)" if code < 0 else f"with exit code {code}"
        return RunFault(
            f"a process that prepares data ended {how}",
            where=f"pid {self.process.pid}",
            remedy="start again: shards that are done are kept",
        )


def main(lines: Iterator[str]) -> None:
    """Serve one parent until it closes the pipe. The first lines name the cache and the encoder, each other a shard."""
    cache = Path(json.loads(next(lines)))
    try:
        encoder = encoder_from(next(lines))
    except RunFault as error:
        raise SystemExit(str(error)) from error
    for line in lines:
        try:
            answer: dict[str, Any] = {"path": str(prepare_shard(Shard.from_portable(line), encoder, cache))}
        except InputError as error:
            answer = {"error": [error.what, error.where, error.remedy]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(iter(sys.stdin))
