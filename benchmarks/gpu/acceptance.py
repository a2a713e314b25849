"""What one GPU must show, in ten minutes: correctness, bitwise resume, kernel times, training speed and memory.

    python benchmarks/gpu/acceptance.py [--results FILE] [--stages A,B] [--continue FILE] [--minutes 10]
    python benchmarks/gpu/acceptance.py --rehearse [--short]
    python benchmarks/gpu/acceptance.py --table [FILE ...]

Every stage runs in a process of its own with a time limit, the most valuable first, and the results file is written
after each. A hang, a fault of the GPU or a lack of memory ends only its stage. --continue runs the stages of a results
file again that failed, did not run, or lacked a package; --stages runs only those. --rehearse runs every stage on a CPU
with tiny sizes and Triton's interpreter: the same code with another device. --table writes the results into the table
of docs/gpu.md. Needs no network and no installed Tunesmith; `carried.py` packs what a bare machine lacks. Works on
torch 2.11, Triton 3.6 and Python 3.12. Exit codes: 0 all stages passed or were skipped, 1 otherwise, 2 bad arguments.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # not this directory: its modules are benchmarks.gpu.*

from benchmarks.gpu.command import main  # noqa: E402
from benchmarks.gpu.running import Stage  # noqa: E402

MODEL = ("triton", "transformers", "peft", "pydantic")
"""Packages of stages that load a model with Tunesmith's own code."""
PRODUCT = (*MODEL, "typer", "rich", "yaml", "pyarrow", "jinja2", "fsspec")
"""Packages of stages that run the command line."""
SUITE = ("triton", "pytest", "xdist", "hypothesis")
"""Packages of stages that run tests of the suite."""

STAGES = (
    Stage("machine", "machine:run", "versions, copy rate, GEMM rate", 40),
    Stage("attention", "attention:run", "backend, new lengths, error of one launch for all documents", 60),
    Stage("kernel-tests", "kernel_tests:run", "the interpreted kernel tests", 100, SUITE, True),
    Stage("kernel-shapes", "kernel_shapes:run", "parity at the sizes of real models", 120, interpreted=True),
    Stage("determinism", "determinism:run", "one LoRA step twice, the loss 500 times", 60, PRODUCT, True),
    Stage("lora", "training:lora", "LoRA on 8B: speed and memory", 90, PRODUCT),
    Stage("qlora", "training:qlora", "QLoRA on 8B: speed and memory", 75, (*PRODUCT, "bitsandbytes")),
    Stage("resume", "resume:run", "kill -9 and resume, bitwise", 120, (*PRODUCT, "bitsandbytes")),
    Stage("timings", "timings:run", "every kernel against its goal", 80, interpreted=True),
    Stage("evaluate", "evaluate:run", "answers, export gate, evaluation, chat", 60, PRODUCT),
    Stage("full", "training:full", "full fine-tuning of 1B at the planned micro-batch", 60, PRODUCT, repeats=True),
    Stage("memory", "training:memory", "LoRA on 8B at the planned micro-batch", 60, PRODUCT, repeats=True),
    Stage("zero", "zero:run", "ZeRO-2 and ZeRO-3 with one rank", 60, (*PRODUCT, "deepspeed")),
    Stage("step-profile", "step_profile:run", "launches and profile of a step", 40, PRODUCT, True, repeats=True),
    Stage(
        "layouts",
        "training:layouts",
        "long documents, activation checkpointing",
        120,
        (*PRODUCT, "bitsandbytes"),
        repeats=True,
    ),
    Stage("sanitizer", "sanitizer:run", "compute-sanitizer: memcheck, racecheck", 90, SUITE, repeats=True),
    Stage("compared", "timings:compared", "eager torch, torch.compile, Liger", 60, interpreted=True, repeats=True),
)

if __name__ == "__main__":
    sys.exit(main(STAGES, __doc__, "gpu-one", Path(__file__).resolve()))
