"""A staged copy of weights and moments in CPU memory, so that the loop continues while it is written to disk."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from tunesmith.errors import RunFault
from tunesmith.progress import advance, progress_of

_RELAY_S = 1.0


class Staging:
    """One buffer for all tensors, allocated on first use and reused. Its size is that of a checkpoint."""

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None
        self._views: list[tuple[str, torch.Tensor]] = []

    def fill(self, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy fp32 tensors in the order of `shapes`. ValueError if names or shapes differ.

        Raises MemoryError if the buffer cannot be allocated; no tensor has been consumed then.
        """
        self._lay_out(shapes)
        expected = iter(self._views)
        for name, tensor in tensors:
            target = next(expected, None)
            if target is None or target[0] != name or target[1].shape != tensor.shape:
                raise ValueError(f"unexpected tensor {name} {tuple(tensor.shape)}")
            target[1].copy_(tensor.detach(), non_blocking=tensor.is_cuda)
            advance()
        if (missing := next(expected, None)) is not None:
            raise ValueError(f"missing tensor {missing[0]}")
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of the last copy, in order."""
        yield from self._views

    def _lay_out(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        sizes = [torch.Size(shape).numel() for shape in shapes.values()]
        if self._buffer is None or self._buffer.numel() != sum(sizes):
            try:
                self._buffer = torch.empty(sum(sizes), dtype=torch.float32, pin_memory=torch.cuda.is_available())
            except RuntimeError as error:  # what torch raises when allocation fails
                raise MemoryError(str(error)) from error
        parts = self._buffer.split(sizes)
        named = zip(shapes.items(), parts, strict=True)
        self._views = [(name, part.view(shape)) for (name, shape), part in named]


class Background:
    """Runs one task at a time in a background thread. Its exception is raised by the next `check` or `wait`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._finished = False
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Wait for the running task, then start `work`."""
        self.wait()
        self._finished = False
        # Not a daemon: if the loop fails, a checkpoint that is being written is still completed before exit.
        self._thread = threading.Thread(target=self._run, args=[work], name="checkpoint-writer")
        self._thread.start()

    def check(self) -> None:
        """Raise the exception of a completed task; RunFault if its thread ended without one. Does not block."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Block until the task is done; raises as `check` does. Its progress counts as that of the waiting thread."""
        if self._thread is None:
            return
        progress = progress_of(self._thread.ident or 0)
        while self._thread.is_alive():
            units = progress.units
            self._thread.join(_RELAY_S)
            if progress.units > units:
                advance()
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if not self._finished:
            raise RunFault("the checkpoint writer ended without an error message", remedy="resume the run")

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
        else:
            self._finished = True
