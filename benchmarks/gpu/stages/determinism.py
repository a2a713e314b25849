"""Bitwise equality: the reported loss 500 times, and one LoRA step twice, of the engine that trains."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.product import tunesmith, write_recipe
from benchmarks.gpu.recipes import stream_recipe
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting
from tunesmith.configs.plan import Plan
from tunesmith.data.index.loader import StepBatch
from tunesmith.kernels.dispatch import Kernels


def run(setting: Setting, record: Record) -> None:
    repeated_loss(setting, record)
    method = "lora"
    engine, batch = engine_of(setting, method)
    losses, digests = [], []
    for _ in range(2):
        sums = engine.train_batch(batch)
        losses.append(sums.loss_sum)
        digests.append(digest_of_gradients(engine))
        for parameter in engine.parameters.values():
            parameter.grad = None
    setting.synchronize()
    record.figure("loss per token", losses[0] / batch.global_targets)
    record.check("one LoRA step twice: loss, bitwise", losses[0] == losses[1], "equals", True)
    record.check("one LoRA step twice: gradients, bitwise", digests[0] == digests[1], "equals", True)


def repeated_loss(setting: Setting, record: Record) -> None:
    """The loss that head and loss report must not depend on the order in which programs run."""
    tokens, hidden, vocab = setting.size((2048, 2048, 128256), (5, 8, 300))
    generator = torch.Generator(setting.device).manual_seed(0)
    hidden_TH = torch.randn(tokens, hidden, generator=generator, device=setting.device).to(setting.dtype)
    weight_VH = torch.randn(vocab, hidden, generator=generator, device=setting.device).mul_(hidden**-0.5)
    weight_VH = weight_VH.to(setting.dtype)
    labels_T = torch.randint(0, vocab, (tokens,), generator=generator, device=setting.device)
    function = Kernels().choose("linear_cross_entropy", hidden_TH)
    reported = set()
    for _ in range(setting.size(500, 20)):
        loss, correct = function(hidden_TH.detach().requires_grad_(), weight_VH, labels_T)
        loss.backward()
        reported.add((loss.item(), int(correct)))
    record.figure("repeated loss", sorted(reported)[0][0])
    record.check("different losses reported for the same inputs", len(reported), "equals", 1)


def engine_of(setting: Setting, method: str) -> tuple[Any, StepBatch]:
    """Return the engine of a plan, set up like a worker's, and the first batch."""
    from tunesmith.data.index.token_index import TokenIndex
    from tunesmith.training.distributed.ranks import own_rank
    from tunesmith.training.engine.build import build_engine
    from tunesmith.training.samples import loader_of
    from tunesmith.training.worker import _set_up_torch

    plan = plan_for(setting, method)
    _set_up_torch(plan)
    ranks = own_rank()
    engine = build_engine(plan, ranks)
    loader = loader_of(plan, TokenIndex.open(Path(plan.data.train.index)), ranks)
    return engine, loader.step_batch(1)


def plan_for(setting: Setting, method: str) -> Plan:
    recipe = stream_recipe(setting, "8B, 2 layers", method, "27 documents", steps=4)
    output = tunesmith(setting, "plan", write_recipe(setting, f"step-{method}", recipe), "--json")
    return Plan.model_validate(json.loads(output))


def digest_of_gradients(engine: Any) -> str:
    """SHA-256 over the trained parameters' gradients. ValueError if all are zero or one is missing."""
    digest, total = hashlib.sha256(), 0.0
    for name, parameter in engine.parameters.items():
        if parameter.grad is None:
            raise ValueError(f"{name} has no gradient")
        digest.update(parameter.grad.detach().float().cpu().numpy().tobytes())
        total += float(parameter.grad.abs().sum())
    if not total > 0:
        raise ValueError("every gradient is zero")
    return digest.hexdigest()
