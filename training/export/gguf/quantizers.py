"""llama.cpp's quantizer for the K-quants: its function in an installed package, or its program on PATH."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from tunesmith.errors import InputError, RunFault
from tunesmith.training.export.gguf.llama_cpp import find_library, ggml_quantizer
from tunesmith.training.export.gguf.quantization import Quantization

_PROGRAM = "llama-quantize"


@dataclass(frozen=True)
class KQuantizer:
    """name: for output. rows: quantizes the rows of a tensor while the file is written; None: `program` quantizes a
    whole file in fp32."""

    name: str
    rows: Callable[[np.ndarray, GGMLQuantizationType], np.ndarray] | None = None
    program: str | None = None

    def quantize_file(self, source: Path, target: Path, quantization: Quantization, threads: int) -> None:
        """Quantize an fp32 file with the program. Raises RunFault if it fails."""
        assert self.program is not None
        command = [self.program, str(source), str(target), quantization.name.upper(), str(threads)]
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            last = (process.stderr.strip() or process.stdout.strip()).splitlines()[-1:]
            raise RunFault(f"{_PROGRAM} failed: {last[0] if last else process.returncode}", where=self.program)


def require_quantizer(quantization: Quantization, threads: int) -> KQuantizer | None:
    """Return llama.cpp's quantizer; None if the quantization needs none. Raises InputError if it is not installed."""
    if not quantization.is_k_quant:
        return None
    library = find_library()
    if library is not None and (rows := ggml_quantizer(library, threads)) is not None:
        return KQuantizer(library.name, rows=rows)  # type: ignore[arg-type]  # a ggml type is an integer
    if (program := shutil.which(_PROGRAM)) is not None:
        return KQuantizer(program, program=program)
    raise InputError(
        f"{quantization.name} needs llama.cpp's quantizer, which is not installed",
        where="--quantization",
        remedy=f"pip install xllamacpp, or put {_PROGRAM} on PATH, or use q8_0",
    )
