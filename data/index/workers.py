"""Prepare shards in worker processes, one per core. `python -m tunesmith.data.index.workers` is such a process.

Workers communicate by JSON lines over pipes: a killed worker is reported, and workers exit when their parent exits.
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
from tunesmith.data.readers.shard import Shard
from tunesmith.errors import InputError, RunFault

# The tokenizer releases the GIL: without a pre-token cache, a few threads keep a few cores busy without the second that
# processes take to start. Lookups in the pre-token cache (pretoken_cache.py) are three times as fast but hold the GIL,
# so processes are used if the data is large enough (INLINE_BYTES take about 3 s on a core).
MAX_THREADS = 4
INLINE_BYTES = 16 << 20


def prepare_shards(
    shards: Sequence[Shard], encoder: RowEncoder, cache: Path, workers: int, done: Callable[[Shard], None]
) -> list[Path]:
    """Prepare shards; return their directories in order. done: called from this thread with each finished shard.

    Uses threads for small data, and on few cores if there is no pre-token cache; otherwise processes.
    Raises InputError as prepare_shard does, RunFault if a worker process fails.
    """
    size = sum(os.path.getsize(path) for path in {shard.path for shard in shards})
    few = workers <= MAX_THREADS and encoder.tokenizer.pretokens is None
    if few or min(workers, len(shards)) < 2 or size < INLINE_BYTES or encoder.tokenizer.directory is None:
        with _tokenizers_serial(), ThreadPoolExecutor(min(workers, MAX_THREADS)) as threads:
            results = threads.map(lambda shard: prepare_shard(shard, encoder, cache), shards)
            return _collect(results, shards, threads, done)
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
                return _collect(results, shards, threads, done)
            except BaseException:
                for worker in started:
                    worker.process.kill()
                raise
    finally:
        for worker in started:
            worker.close()


@contextmanager
def _tokenizers_serial() -> Iterator[None]:
    """Disable the tokenizer's threads while several threads call it; nested thread pools waste time spinning."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _collect(
    results: Iterable[Path], shards: Sequence[Shard], threads: ThreadPoolExecutor, done: Callable[[Shard], None]
) -> list[Path]:
    """Collect results and call `done` for each; if one fails, cancel those that have not started."""
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
    """One worker process; `prepare` sends it a shard and waits for the response."""

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
        response = json.loads(self.process.stdout.readline() or "null")  # type: ignore[union-attr]
        if response is None:
            raise self._exit_error()
        if "error" in response:
            what, where, remedy = response["error"]
            raise InputError(what, where=where, remedy=remedy)
        return Path(response["path"])

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
            raise self._exit_error() from error

    def _exit_error(self) -> RunFault:
        code = self.process.wait()
        how = f"was killed by signal {-code} (9: usually out of memory)" if code < 0 else f"exited with code {code}"
        return RunFault(
            f"a data preparation process {how}",
            where=f"pid {self.process.pid}",
            remedy="run the command again; finished shards are cached",
        )


def main(lines: Iterator[str]) -> None:
    """Serve one parent until it closes the pipe. The first two lines are cache and encoder, each later one a shard."""
    cache = Path(json.loads(next(lines)))
    try:
        encoder = encoder_from(next(lines))
    except RunFault as error:
        raise SystemExit(str(error)) from error
    for line in lines:
        try:
            response: dict[str, Any] = {"path": str(prepare_shard(Shard.from_portable(line), encoder, cache))}
        except InputError as error:
            response = {"error": [error.what, error.where, error.remedy]}
        print(json.dumps(response), flush=True)


if __name__ == "__main__":
    main(iter(sys.stdin))
