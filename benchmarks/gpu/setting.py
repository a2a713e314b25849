"""Where the stages run and with which sizes: on a GPU, or in a rehearsal on a CPU with tiny shapes."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.device_time import CudaDevice, Device


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaMA model."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    tied: bool = False

    @property
    def num_matrix_weights(self) -> int:
        """Weights that take part in products: blocks and output layer."""
        size = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.key_heads * size
        return self.layers * (attention + 3 * self.hidden * self.inner) + self.vocab * self.hidden


SHAPES = {
    "8B": Shape(128256, 4096, 14336, 32, 32, 8),
    "8B, 2 layers": Shape(128256, 4096, 14336, 2, 32, 8),
    "1B": Shape(128256, 2048, 8192, 16, 32, 8, tied=True),
    "135M": Shape(49152, 576, 1536, 30, 9, 3, tied=True),
}
TINY = Shape(384, 64, 128, 2, 4, 2)


@dataclass(frozen=True)
class Setting:
    """rehearsal: on a CPU with tiny sizes. short: the rehearsal leaves out what repeats a code path. work: directory
    for models and runs."""

    rehearsal: bool
    short: bool
    work: Path

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsal else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of kernels and attention. bf16 also in a rehearsal: Triton's interpreter has it."""
        return torch.bfloat16

    def size(self, on_gpu: Any, rehearsed: Any) -> Any:
        """Return the value for this setting."""
        return rehearsed if self.rehearsal else on_gpu

    def shape(self, name: str) -> Shape:
        return TINY if self.rehearsal else SHAPES[name]

    def timer(self) -> Device:
        return HostDevice() if self.rehearsal else CudaDevice()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    @property
    def rates(self) -> dict[str, float]:
        """Copy rate (bytes/s, read and written) and GEMM rate (FLOP/s) that the stage `machine` measured; empty before
        it ran."""
        file = self.work / "rates.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def keep_rates(self, copy_bytes_per_s: float, gemm_flops: float) -> None:
        rates = {"copy_bytes_per_s": copy_bytes_per_s, "gemm_flops": gemm_flops}
        (self.work / "rates.json").write_text(json.dumps(rates), encoding="utf-8")


class HostDevice:
    """A CPU as the device of `device_time.kernel_seconds`: every call has ended when it returns."""

    cache_bytes = 1 << 16

    def spin(self, seconds: float) -> None:
        pass

    def mark(self) -> float:
        return time.perf_counter()

    def has_passed(self, mark: float) -> bool:
        return False

    def seconds_between(self, first: float, last: float) -> float:
        return last - first
