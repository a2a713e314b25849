"""Tries grammars in separate processes before the inference process compiles them.

A JSON schema may describe an automaton of any size: `{"multipleOf": 123456789}` alone takes minutes and 13 GB. A trial
compiles it under a limit of CPU time and memory, while the inference process continues to answer others; a grammar
that exceeds a limit ends the trial's process, not the service.

    python -P -m tunesmith.inference.grammar_trials

reads one JSON object per line (Trial) and writes one per line: `{"error": [code, message, data] or null}`.
"""

import hashlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
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
MAX_PROCESSES = 2
_MAX_RESULTS = 1024
_WALL_S = 60.0
"""A trial's process that does not answer by then (the machine is overloaded) is killed."""
_EXIT_S = 10.0
"""Time for a process that closed its output to exit."""


class TrialUnavailable(Exception):
    """A grammar could not be tried: the machine is overloaded or out of memory. Later it may be accepted."""


@dataclass(eq=False)
class Trial:
    """A grammar of a request. caller: of the request. failure: set when a trial is done; None if it was accepted."""

    tokenizer: "Tokenizer"
    grammar: Grammar
    caller: str = ""
    failure: RequestRejected | TrialUnavailable | None = None

    @cached_property
    def key(self) -> str:
        """Hash of everything that the result depends on."""
        parts = [self.tokenizer.fingerprint, self.grammar.lark, self.grammar.schemas]
        return hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(eq=False)
class _Shared:
    """One run for all trials of the same grammar. on_done: of each trial. process: while it runs."""

    first: Trial
    on_done: dict[Trial, Callable[[], None]]
    process: "_Process | None" = None


class GrammarTrials:
    """Processes for trials, started on the first one, and the results of earlier trials.

    At most MAX_PROCESSES run at once, one per caller; callers take turns. prepare: compiles an accepted grammar in this
    process, in the thread of the trial.
    """

    def __init__(self, prepare: "Callable[[Tokenizer, Grammar], object] | None" = None) -> None:
        self._prepare = prepare
        self._executor = ThreadPoolExecutor(MAX_PROCESSES, thread_name_prefix="grammar-trial")
        self._idle = [_Process() for _ in range(MAX_PROCESSES)]
        self._waiting: OrderedDict[str, deque[_Shared]] = OrderedDict()
        """By caller; the caller whose turn is next comes first."""
        self._running: dict[str, _Shared] = {}
        """By caller."""
        self._by_key: dict[str, _Shared] = {}
        self._results: OrderedDict[str, RequestRejected | None] = OrderedDict()
        self._lock = threading.RLock()

    def start(self, trial: Trial, on_done: Callable[[], None]) -> None:
        """Queue a trial. on_done: called in another thread when it is done; not called if it was cancelled."""
        with self._lock:
            shared = self._by_key.get(trial.key)
            if shared is None:
                shared = self._by_key[trial.key] = _Shared(trial, {})
                self._waiting.setdefault(trial.caller, deque()).append(shared)
            shared.on_done[trial] = on_done
            self._dispatch()

    def is_known(self, key: str) -> bool:
        with self._lock:
            return key in self._results

    def result(self, key: str) -> RequestRejected | None:
        """Return why the grammar of a completed trial was rejected, or None if it was accepted."""
        with self._lock:
            return self._results.get(key)

    def cancel(self, trial: Trial) -> None:
        """Cancel a trial. Its run is stopped unless other trials share it."""
        with self._lock:
            shared = self._by_key.get(trial.key)
            if shared is None or shared.on_done.pop(trial, None) is None or shared.on_done:
                return
            del self._by_key[trial.key]
            if shared.process is not None:
                shared.process.kill()
            else:
                self._waiting[shared.first.caller].remove(shared)

    def close(self) -> None:
        with self._lock:
            self._waiting.clear()
            for shared in self._running.values():
                if shared.process is not None:
                    shared.process.kill()
            for process in self._idle:
                process.kill()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self) -> None:
        """Start waiting trials in free processes."""
        for caller in list(self._waiting):
            if not self._waiting[caller]:
                del self._waiting[caller]
            elif self._idle and caller not in self._running:
                shared = self._waiting[caller].popleft()
                self._waiting.move_to_end(caller)
                self._running[caller], shared.process = shared, self._idle.pop()
                self._executor.submit(self._run, caller, shared, shared.process)

    def _run(self, caller: str, shared: _Shared, process: "_Process") -> None:
        failure = self._failure(shared, process)
        with self._lock:
            del self._running[caller]
            self._idle.append(process)
            shared.process = None
            if self._by_key.get(shared.first.key) is shared:
                del self._by_key[shared.first.key]
                if not isinstance(failure, TrialUnavailable):
                    self._results[shared.first.key] = failure
                while len(self._results) > _MAX_RESULTS:
                    self._results.popitem(last=False)
            for trial in shared.on_done:
                trial.failure = failure
            callbacks = list(shared.on_done.values())
            self._dispatch()
        for on_done in callbacks:
            on_done()

    def _failure(self, shared: _Shared, process: "_Process") -> RequestRejected | TrialUnavailable | None:
        """Try a grammar, twice if the process ends for another reason than the grammar."""
        trial = shared.first
        for _ in range(2):
            if not shared.on_done:
                break
            try:
                rejection = process.run(trial)
                if rejection is None and self._prepare is not None:
                    self._prepare(trial.tokenizer, trial.grammar)
                return rejection
            except RequestRejected as rejection:
                return rejection
            except (OSError, ValueError):  # the machine is overloaded or out of memory: the grammar may be fine
                process.kill()
            except Exception as error:  # never accept what was not tried, and never leave a request waiting
                return RequestRejected("broken_grammar", str(error), reason=type(error).__name__)
        return TrialUnavailable("The requested format could not be checked in time. Please try again.")


class _Process:
    """A child process that runs one trial after another; a killed one is started again."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._known: set[str] = set()

    def run(self, trial: Trial) -> RequestRejected | None:
        """Raises OSError or ValueError if the process ends for another reason than its limits."""
        child = self._started()
        try:
            answer = self._ask(child, trial)
        except TimeoutError:
            raise
        except (OSError, ValueError):
            if _has_exceeded_a_limit(child):
                parameter = trial.grammar.schemas[0][0] if trial.grammar.schemas else None
                text = f"enforcing it takes more than {CPU_S:.0f} s or {MEMORY_BYTES >> 20} MiB"
                return invalid_schema(parameter, None, text)
            raise
        if answer["error"] is None:
            return None
        code, message, data = answer["error"]
        return RequestRejected.restore(code, message, data)

    def _ask(self, child: subprocess.Popen[bytes], trial: Trial) -> dict[str, Any]:
        """Raises OSError or ValueError if the process ends instead of answering."""
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


def _has_exceeded_a_limit(child: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended by a limit of `_Limits`, or by an error of the compiler."""
    try:
        return child.wait(_EXIT_S) not in (0, -signal.SIGKILL, -signal.SIGTERM)
    except subprocess.TimeoutExpired:
        return False


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
