"""Main loop of the inference process: accepts requests, schedules them fairly, runs the batches, sends the output."""

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import TunesmithError
from tunesmith.inference.batched_model import BatchedModel
from tunesmith.inference.device import best_device as best_device
from tunesmith.inference.grammar_matcher import compiled
from tunesmith.inference.grammar_trials import GrammarTrials, Trial, TrialUnavailable
from tunesmith.inference.sequence import Generation, Output, PromptLogprobs, Sequence
from tunesmith.inference.types import Chunk, RequestRejected, Sampling, Target, too_long
from tunesmith.launcher.hardware import free_memory
from tunesmith.rundir.faults import fault_point
from tunesmith.serving.engine.core_share import CoreShare, available_cores, training_threads
from tunesmith.serving.engine.fair_queue import FairQueue
from tunesmith.serving.engine.frames import Message
from tunesmith.serving.engine.heartbeat import Progress
from tunesmith.serving.engine.protocol import EngineOptions
from tunesmith.serving.engine.rejections import as_rejection
from tunesmith.serving.engine.wire import chunk_to_json, logprob_to_json, sampling_from_json, target_from_json


@dataclass(eq=False)
class _Request:
    """A request. sampling: of a generation. trial: of its grammar, once it is done. sequence: created when the request
    is first scheduled, and kept if it is preempted."""

    message: Message
    target: Target
    sampling: Sampling | None = None
    trial: Trial | None = None
    sequence: Sequence | None = None

    @property
    def number(self) -> int:
        return self.message["id"]

    @property
    def caller(self) -> str:
        return self.message["caller"]

    @property
    def adapter(self) -> str:
        return str(self.target.adapter or "")

    def num_tokens(self) -> int:
        return 1 + len(self.message["prompt"] if self.sequence is None else self.sequence.tokens)


class Service:
    """send: sends a message to the API. device: of all weights. progress: shown by the heartbeats."""

    def __init__(
        self,
        options: EngineOptions,
        device: torch.device,
        send: Callable[[Message], None],
        progress: Progress | None = None,
    ):
        self.options, self.device, self.send, self.progress = options, device, send, progress or Progress()
        self.bases: dict[Path, BatchedModel] = {}
        """Loaded base models, least recently used first."""
        self.waiting: FairQueue[_Request] = FairQueue()
        self.running: dict[Sequence, _Request] = {}
        self.to_unload: set[str] = set()
        """Adapters to unload once no sequence uses them."""
        self.trials = GrammarTrials(compiled)
        self.in_trial: dict[_Request, Trial] = {}
        """Requests whose grammar is being tried in another process; they return to `waiting`."""
        self.messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        on_cpu = device.type == "cpu"
        self.cores = CoreShare(torch.get_num_threads(), available_cores(), training_threads) if on_cpu else None

    def run(self, messages: "queue.SimpleQueue[Message | None]") -> None:
        """Process messages until None. Blocks while idle."""
        self.messages = messages
        try:
            self._run(messages)
        finally:
            self.trials.close()

    def _run(self, messages: "queue.SimpleQueue[Message | None]") -> None:
        while True:
            idle = not self.running and not len(self.waiting)
            while True:
                try:
                    with self.progress.during("idle" if idle else "working"):
                        message = messages.get(block=idle)
                except queue.Empty:
                    break
                if message is None:
                    return
                self.handle(message)
                idle = False
            self.admit()
            begun = time.monotonic()
            for base in list(self.bases.values()):
                if base.active:
                    self.step(base)
            if self.cores is not None and self.bases:
                time.sleep(self.cores.pause_s(time.monotonic() - begun))

    def handle(self, message: Message) -> None:
        kind = message["kind"]
        if kind in ("generate", "read"):
            num_waiting = len(self.waiting) + len(self.in_trial)
            if num_waiting >= self.options.max_waiting:
                self.send({"id": message["id"], "busy": num_waiting})
            else:
                sampling = sampling_from_json(message["sampling"]) if kind == "generate" else None
                self.waiting.add(_Request(message, target_from_json(message["target"]), sampling))
        elif kind == "tried":
            for request in [request for request in self.in_trial if request.number == message["id"]]:
                request.trial = self.in_trial.pop(request)
                self.waiting.put_back(request)
        elif kind == "cancel":
            self._cancel(message["number"])
        elif kind == "forget":
            self.to_unload.add(message["adapter"])
            self._unload_pending()
            self.send({"id": message["id"], "done": True})
        elif kind == "facts":
            self.send({"id": message["id"], "facts": self.facts()})

    def admit(self) -> None:
        """Start waiting requests in free slots."""
        while len(self.running) < self.options.max_places:
            request = self.waiting.next(self._fits)
            if request is None:
                return
            self.progress.advance()
            try:
                self._start(request)
            except TrialUnavailable as error:
                self.send({"id": request.number, "unavailable": str(error)})
            except (TunesmithError, RequestRejected) as error:
                self._send_output(request.number, error)

    def step(self, base: BatchedModel) -> None:
        fault_point("engine.step")
        try:
            outcomes, preempted = base.step()
        except (TunesmithError, RequestRejected) as error:
            for sequence in list(base.active):
                self._send_output(self.running.pop(sequence).number, error)
                base.leave(sequence)
            return
        for sequence in reversed(preempted):
            self.waiting.put_back(self.running.pop(sequence))
        for sequence, outputs in outcomes:
            self.progress.advance()
            for output in outputs:
                self._send_output(sequence.number, output)
            if sequence.ended:
                del self.running[sequence]
        self._unload_pending()

    def facts(self) -> dict[str, Any]:
        """Memory usage in bytes, and the numbers of running and waiting requests."""
        return {
            "bases": {
                str(base.directory): {
                    "weight_bytes": base.runner.num_bytes(),
                    "cache_bytes": base.cache.num_bytes(),
                    "cache_tokens": base.scheduler.cache_tokens,
                    "adapters": dict(base.adapters.loaded),
                }
                for base in self.bases.values()
            },
            "served": len(self.running),
            "waiting": len(self.waiting) + len(self.in_trial),
            "device": str(self.device),
        }

    def _fits(self, request: _Request) -> bool:
        base = self.bases.get(request.target.base)
        if base is not None:
            return base.scheduler.has_room(request.num_tokens())
        return len(self.bases) < self.options.max_bases or any(not base.active for base in self.bases.values())

    def _start(self, request: _Request) -> None:
        """Raises TunesmithError if weights cannot be loaded, RequestRejected if the request is invalid."""
        base = self._base(request.target.base)
        if request.adapter:
            self.to_unload.discard(request.adapter)
            self._use_adapter(base, request.adapter)
        if request.sequence is None:
            if self._starts_trial(request, base):
                return
            request.sequence = _sequence(request, base)
        if request.sequence.ended:  # a prompt of one token has no log-probabilities
            self._send_output(request.number, [])
            return
        base.join(request.sequence)
        self.running[request.sequence] = request

    def _starts_trial(self, request: _Request, base: BatchedModel) -> bool:
        """Whether the request has to wait for a trial of its grammar, which is started. Raises RequestRejected or
        TrialUnavailable if its trial failed, or an earlier one of the same grammar."""
        if request.sampling is None or request.sampling.grammar is None:
            return False
        if request.trial is not None:
            if request.trial.failure is not None:
                raise request.trial.failure
            return False
        trial = Trial(base.tokenizer(request.adapter), request.sampling.grammar, request.caller)
        if self.trials.is_known(trial.key):
            if (rejection := self.trials.result(trial.key)) is not None:
                raise rejection
            return False
        self.in_trial[request] = trial
        number = request.number
        self.trials.start(trial, lambda: self.messages.put({"kind": "tried", "id": number}))
        return True

    def _base(self, directory: Path) -> BatchedModel:
        if directory in self.bases:
            self.bases[directory] = self.bases.pop(directory)
            return self.bases[directory]
        idle = [name for name, base in self.bases.items() if not base.active]
        if len(self.bases) >= self.options.max_bases:
            del self.bases[idle[0]]
        with self.progress.during("loading"):
            self.bases[directory] = BatchedModel(
                *(directory, self.device, self.options.cache_tokens),
                free_memory=lambda: free_memory()[0],
                on_layer=self.progress.advance,
            )
        return self.bases[directory]

    def _use_adapter(self, base: BatchedModel, adapter: str) -> None:
        if adapter not in base.adapters.loaded:
            self._unload_deleted()
        with self.progress.during("loading"):
            base.adapters.use(adapter)
        in_use = {sequence.adapter for sequence in self.running}
        loaded = [(other, name) for other in self.bases.values() for name in other.adapters.loaded]
        unused = [(other, name) for other, name in loaded if name not in in_use and name != adapter]
        for other, name in unused[: max(0, len(loaded) - self.options.max_adapters)]:
            other.adapters.unload(name)

    def _unload_deleted(self) -> None:
        """Unload adapters whose files were deleted: jobs delete old checkpoints without notifying this process."""
        loaded = [name for base in self.bases.values() for name in base.adapters.loaded]
        self.to_unload |= {name for name in loaded if not Path(name).is_dir()}
        self._unload_pending()

    def _unload_pending(self) -> None:
        in_use = {sequence.adapter for sequence in self.running}
        for name in self.to_unload - in_use:
            for base in self.bases.values():
                base.adapters.unload(name)
            self.to_unload.discard(name)

    def _cancel(self, number: int) -> None:
        self.waiting.remove(lambda request: request.number == number)
        for request in [request for request in self.in_trial if request.number == number]:
            self.trials.cancel(self.in_trial.pop(request))
        for sequence in [sequence for sequence in self.running if sequence.number == number]:
            self.bases[self.running.pop(sequence).target.base].leave(sequence)

    def _send_output(self, number: int, output: Output | TunesmithError) -> None:
        if isinstance(output, (TunesmithError, RequestRejected)):
            error = as_rejection(output)
            self.send({"id": number, "refused": error.message, "code": error.code, "param": error.param})
        elif isinstance(output, Chunk):
            self.send({"id": number, "piece": chunk_to_json(output)})
        else:
            self.send({"id": number, "read": [logprob_to_json(logprob) for logprob in output]})


def _sequence(request: _Request, base: BatchedModel) -> Sequence:
    message = request.message
    prompt, tokenizer, context = message["prompt"], base.tokenizer(request.adapter), base.runner.context
    shared = message["id"], message["caller"], request.adapter, prompt, tokenizer
    vocabulary = base.runner.vocabulary(request.adapter)
    if not prompt:
        raise RequestRejected("empty_prompt", "the prompt is empty")
    if unknown := next((token for token in prompt if not 0 <= token < vocabulary), None):
        text = f"token {unknown} is not in the vocabulary of {vocabulary:,} tokens"
        raise RequestRejected("unknown_token", text, token=unknown, vocabulary=vocabulary)
    if message["kind"] == "read":
        if len(prompt) > context:
            raise too_long(context, len(prompt), 0)
        return PromptLogprobs(*shared, message["top"])
    sampling = request.sampling or Sampling()
    available = context - len(prompt)
    if available < 1 or (sampling.max_new_tokens or 1) > available:
        raise too_long(context, len(prompt), sampling.max_new_tokens or 1)
    return Generation(*shared, sampling, sampling.max_new_tokens or available)
