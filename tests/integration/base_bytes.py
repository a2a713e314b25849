"""Measurement script for one rank: `torchrun base_bytes.py PLAN` prints the bytes of the base model's weights.

Not a test: builds the engine as a worker does and counts all weights that are not trained.
"""

import json
import sys
from pathlib import Path

import torch

from tunesmith.configs.plan import read_plan
from tunesmith.training.distributed.ranks import join_ranks, leave_ranks
from tunesmith.training.engine.build import build_engine

plan = read_plan(Path(sys.argv[1]))
ranks = join_ranks("cpu")
engine = build_engine(plan, ranks)
held = whole = 0
for name, parameter in engine.loss_module.named_parameters():
    if name in engine.shapes() or "lora_" in name:
        continue
    state = getattr(parameter, "quant_state", None)
    share = parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter
    held += share.nbytes + (parameter.nbytes if hasattr(parameter, "ds_tensor") else 0)
    if state is not None:
        held += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
        whole += 4 * torch.Size(state.shape).numel()
    else:
        whole += 4 * (parameter.ds_numel if hasattr(parameter, "ds_tensor") else parameter.numel())
print(json.dumps({"base": held, "base_in_fp32": whole}), flush=True)
engine.close()
leave_ranks()
