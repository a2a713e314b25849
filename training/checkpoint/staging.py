"""A copy of what is trained, in the CPU's memory: the loop goes on while it is written to disk."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from tunesmith.errors import RunFault


class Staging:
    """One buffer for all tensors, made at the first use and used again. Its size is that of a checkpoint."""

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None
        self._views: list[tuple[str, torch.Tensor]] = []

    def fill(self, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy fp32 tensors, told beforehand by name and shape, in order. ValueError where others come.

        Raises MemoryError where there is no room; none of the tensors is taken then.
        """
        self._lay_out(shapes)
        expected = iter(self._views)
        for name, tensor in tensors:
            told = next(expected, None)
            if told is None or told[0] != name or told[1].shape != tensor.shape:
                raise ValueError(f"{name} {tuple(tensor.shape)} is not the tensor that was told to come next")
            told[1].copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        if (missing := next(expected, None)) is not None:
            raise ValueError(f"{missing[0]} was told to come and did not")
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What was copied last, in its order."""
        yield from self._views

    def _lay_out(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        sizes = [torch.Size(shape).numel() for shape in shapes.values()]
        if self._buffer is None or self._buffer.numel() != sum(sizes):
            try:
                self._buffer = torch.empty(sum(sizes), dtype=torch.float32, pin_memory=torch.cuda.is_available())
            except RuntimeError as error:  # what torch raises where the system gives no memory
                raise MemoryError(str(error)) from error
        parts = self._buffer.split(sizes)
        named = zip(shapes.items(), parts, strict=True)
        self._views = [(name, part.view(shape)) for (name, shape), part in named]


class Background:
    """Runs one piece of work at a time beside the loop. What it raises is raised by the next `check` or `wait`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._finished = False
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Wait for what is under way, then start `work`."""
        self.wait()
        self._finished = False
        # Not a daemon: also where the loop fails, a checkpoint that is being written becomes whole before the end.
        self._thread = threading.Thread(target=self._run, args=[work], name="checkpoint-writer")
        self._thread.start()

    def check(self) -> None:
        """Raise what the work raised; RunFault where its thread is gone without a word. Returns at once."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until the work is done; raises as `check` does."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if not self._finished:
            raise RunFault("the checkpoint writer ended without a word", remedy="resume the run")

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
        else:
            self._finished = True
