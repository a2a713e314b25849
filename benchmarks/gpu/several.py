"""What two and more GPUs of one machine must show: collectives, equal losses of every engine, resume, hangs, placement.

    python benchmarks/gpu/several.py [--results FILE] [--stages A,B] [--continue FILE] [--minutes 10]
    python benchmarks/gpu/several.py --rehearse [--short]
    python benchmarks/gpu/several.py --table [FILE ...]

Options and results as in acceptance.py. One process per visible GPU, over NCCL; --rehearse: two processes on the CPU,
over gloo.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # not this directory: its modules are benchmarks.gpu.*

from benchmarks.gpu.command import main  # noqa: E402
from benchmarks.gpu.running import Stage  # noqa: E402

PRODUCT = ("triton", "transformers", "peft", "pydantic", "typer", "rich", "yaml", "pyarrow", "jinja2", "fsspec")
SHARDED = (*PRODUCT, "deepspeed")

STAGES = (
    Stage("ranks", "ranks:run", "collectives, and the kernels on every device", 60, interpreted=True),
    Stage("losses", "several_losses:run", "DDP and ZeRO-1, 2, 3 against one process", 200, SHARDED),
    Stage("resume", "several_resume:run", "kill -9 under ZeRO-3 and resume, bitwise", 120, SHARDED, repeats=True),
    Stage("hang", "hang:run", "a hang is reported with rank, stage and collective", 100, PRODUCT, repeats=True),
    Stage("placement", "placement:run", "torchrun, and Ray where it is installed", 120, PRODUCT, repeats=True),
)

if __name__ == "__main__":
    sys.exit(main(STAGES, __doc__, "gpu-several", Path(__file__).resolve()))
