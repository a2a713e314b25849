"""Tries grammars in separate processes before the inference process compiles them.

A JSON schema may describe an automaton of any size: `{"multipleOf": 123456789}` alone takes minutes and 13 GB. A trial
compiles it under a limit of CPU time and memory, while the inference process continues to answer others; a grammar
that exceeds a limit ends the trial's process, not the service.

    python -P -m tunesmith.inference.grammar_trials

reads one JSON object per line (Trial) and writes one per line: `{"error": [code, message, data] or null}`.
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.inference.grammar import Grammar
from tunesmith.inference.grammar_compiler import build_vocabulary, compile_grammar, invalid_schema
from tunesmith.inference.types import RequestRejected
from tunesmith.threads import thread_environment

if TYPE_CHECKING:  # the processes import nothing that they do not need
    from tunesmith.data.tokenization.tokenizer import Tokenizer

CPU_S = 2.0
"""CPU seconds of a trial. The inference process needs the same time once more for a grammar that passes."""
MEMORY_BYTES = 1 << 30
"""Memory of a trial, beyond that of the vocabulary."""
_WALL_S = 60.0
"""A trial's process that does not answer by then (the machine is overloaded) is killed."""
_MAX_PROCESSES, _MAX_RESULTS = 2, 1024


@dataclass(eq=False)
class Trial:
    """A queued, running or completed trial."""

    tokenizer: "Tokenizer"
    grammar: Grammar
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> tuple[str, str]:
        return self.tokenizer.fingerprint, self.grammar.lark


class GrammarTrials:
    """Processes for trials, started on the first one, and the results of earlier trials."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(_MAX_PROCESSES, thread_name_prefix="grammar-trial")
        self._local = threading.local()
        self._processes: list[_Process] = []
        self._results: OrderedDict[tuple[str, str], RequestRejected | None] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, trial: Trial, on_done: Callable[[], None]) -> None:
        """Queue a trial. on_done: called in another thread when `result` has it; not called if it was cancelled."""
        future = self._executor.submit(self._run, trial)

        def done(future: Future[RequestRejected | None]) -> None:
            if trial.cancelled.is_set() or future.cancelled():
                return
            if (error := future.exception()) is None:
                rejection = future.result()
            else:  # never accept what was not tried, and never leave a request waiting
                rejection = RequestRejected("broken_grammar", str(error), reason=type(error).__name__)
            with self._lock:
                self._results[trial.key] = rejection
                while len(self._results) > _MAX_RESULTS:
                    self._results.popitem(last=False)
            on_done()

        future.add_done_callback(done)

    def is_known(self, key: tuple[str, str]) -> bool:
        with self._lock:
            return key in self._results

    def result(self, key: tuple[str, str]) -> RequestRejected | None:
        """Return why the grammar of a completed trial was rejected, or None if it was accepted."""
        with self._lock:
            return self._results.get(key)

    def cancel(self, trial: Trial) -> None:
        """Stop a trial, whether it is queued or running."""
        trial.cancelled.set()
        for process in self._processes:
            if process.trial is trial:
                process.kill()

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()

    def _run(self, trial: Trial) -> RequestRejected | None:
        if trial.cancelled.is_set():
            return None
        process: _Process | None = getattr(self._local, "process", None)
        if process is None:
            process = self._local.process = _Process()
            self._processes.append(process)
        return process.run(trial)


class _Process:
    """A child process that runs one trial after another; a killed one is started again."""

    def __init__(self) -> None:
        self.trial: Trial | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._known: set[str] = set()

    def run(self, trial: Trial) -> RequestRejected | None:
        self.trial = trial
        try:
            answer = self._ask(trial)
        except (OSError, ValueError):  # the process was killed by one of its limits
            self.kill()
            parameter = trial.grammar.schemas[0][0] if trial.grammar.schemas else None
            text = f"enforcing it takes more than {CPU_S:.0f} s or {MEMORY_BYTES >> 20} MiB"
            return invalid_schema(parameter, None, text)
        finally:
            self.trial = None
        if answer["error"] is None:
            return None
        code, message, data = answer["error"]
        return RequestRejected.restore(code, message, data)

    def _ask(self, trial: Trial) -> dict[str, Any]:
        """Raises OSError or ValueError if the process ends instead of answering."""
        child = self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        tokenizer = trial.tokenizer
        is_known = tokenizer.fingerprint in self._known
        request = {
            "fingerprint": tokenizer.fingerprint,
            "tokenizer": None if is_known else tokenizer.backend.to_str(),
            "stop_ids": tokenizer.stop_token_ids,
            "lark": trial.grammar.lark,
            "schemas": trial.grammar.schemas,
        }
        self._known.add(tokenizer.fingerprint)
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
        if not select.select([child.stdout], [], [], _WALL_S)[0]:
            raise TimeoutError
        return json.loads(child.stdout.readline())

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._known.clear()
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "tunesmith.inference.grammar_trials"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **thread_environment(1)},
            )
        return self._child

    def kill(self) -> None:
        if (child := self._child) is not None:
            child.kill()
            child.wait()


def main() -> int:
    """Answer requests until standard input ends, which it does with the inference process."""
    vocabularies: dict[str, Any] = {}
    for line in sys.stdin.buffer:
        request = json.loads(line)
        grammar = Grammar(request["lark"], tuple((parts[0], parts[1], parts[2]) for parts in request["schemas"]))
        error: list[Any] | None = None
        try:
            if request["fingerprint"] not in vocabularies:
                vocabularies[request["fingerprint"]] = build_vocabulary(request["tokenizer"], request["stop_ids"])
            with _Limits():
                matcher = compile_grammar(vocabularies[request["fingerprint"]], grammar)
                matcher.deep_copy().compute_bitmask()
        except RequestRejected as rejection:
            error = [rejection.code, rejection.message, rejection.data]
        sys.stdout.buffer.write(json.dumps({"error": error}).encode() + b"\n")
        sys.stdout.buffer.flush()
    return 0


class _Limits:
    """Limits of CPU time and memory while a grammar is compiled. Exceeding one ends the process: SIGPROF by its
    default action, a failed allocation by an abort of the Rust code, which Python cannot catch."""

    def __enter__(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
        signal.setitimer(signal.ITIMER_PROF, CPU_S)

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
