"""The DeepSpeed engine: optimizer state, gradients and weights sharded over the ranks (ZeRO stages 1, 2 and 3).

Implements the contract of `training.engine.protocol`. DeepSpeed averages gradients over ranks, so the loss is
multiplied by the world size. The accumulation boundary is set for every micro-batch, so that a step may have any number
of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import numpy as np
import torch
from torch import nn

from tunesmith.configs.plan import ParallelismFacts
from tunesmith.configs.recipe import Optimization
from tunesmith.data.index.loader import IGNORED, MicroBatch, StepBatch
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.parts import causal_lm
from tunesmith.progress import advance
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.deepspeed_start import start_deepspeed, stop_deepspeed
from tunesmith.training.engine.loss_scale import LossScale
from tunesmith.training.engine.protocol import BatchSums
from tunesmith.training.engine.tensors import reference_tensors, to_tensors, unrelated_mean
from tunesmith.training.engine.zero_state import ZeroState
from tunesmith.training.optim.optimizer import MOMENTS, full_shape, make_optimizer


class DeepSpeedEngine:
    """Trains `loss_module` on one device or sharded over several. parameters: trained parameters by stable name.

    With zero_stage 3 the module's weights may already be sharded (`training.engine.zero_loading`). loss_scale: in fp16.
    """

    def __init__(
        self,
        loss_module: CausalLoss,
        parameters: Mapping[str, nn.Parameter],
        optimization: Optimization,
        ranks: Ranks,
        *,
        device: str,
        parallelism: ParallelismFacts,
        loss_scale: LossScale | None = None,
    ):
        self.loss_module, self.parameters, self.ranks, self.device = loss_module, dict(parameters), ranks, device
        self.label_smoothing = optimization.label_smoothing
        self._closed, self.loss_scale = False, loss_scale
        self.sharded = parallelism.zero_stage == 3
        self.optimizer = make_optimizer(self.parameters, optimization)
        deepspeed = start_deepspeed(device, ranks)
        with redirect_stdout(StringIO()):  # one of its optimizers prints its memory use repeatedly
            self.engine, zero, *_ = deepspeed.initialize(
                model=loss_module, optimizer=self.optimizer, config=parallelism.deepspeed, dist_init_required=False
            )
        self.state = ZeroState(zero, self.optimizer, self.parameters, ranks, parallelism.zero_stage)
        if self.sharded:
            self._register_direct_calls()

    def train_batch(self, batch: StepBatch) -> BatchSums:
        """Forward and backward of every micro-batch; leaves the contract's gradient, sharded over the ranks."""
        self.loss_module.train()
        if self.loss_scale is not None:  # DeepSpeed multiplies the loss by it, and divides gradient and norm by it
            self.state.zero.loss_scaler.cur_scale = self.loss_scale.scale
        loss_sum = torch.zeros((), dtype=torch.float64)
        num_correct = 0
        shared = unrelated_mean(self.loss_module, batch, self.ranks, self.device)
        for number, micro_batch in enumerate(batch.micro_batches, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(batch.micro_batches))
            counts = micro_batch.num_supervised > 0
            tensors = to_tensors(micro_batch if counts else _with_targets(micro_batch), self.device)
            reference = reference_tensors(micro_batch, self.device)
            sums = self.engine(*tensors, label_smoothing=self.label_smoothing, **reference, **shared)
            # A filler runs like any other micro-batch: every rank takes part in every gather. Its gradient is zero.
            scale = self.ranks.world_size / batch.global_targets if counts else 0.0
            self.engine.backward(sums.loss_sum * scale, scale_wrt_gas=False)
            if counts:
                loss_sum += sums.loss_sum.detach().double().cpu()
                num_correct += int(sums.num_correct)
        total_loss, total_correct = self.ranks.sum(float(loss_sum), float(num_correct))
        return BatchSums(total_loss, int(total_correct), batch.global_supervised_tokens, batch.global_targets)

    def optim_step(self, learning_rate: float) -> tuple[float, bool]:
        """Clip and apply the gradient. Returns its norm before clipping, and whether the weights were updated.

        The norm is computed over all ranks before anything is applied, so every rank decides the same.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        updated = self.engine.was_step_applied()
        if self.loss_scale is not None:
            self.loss_scale.update(finite=updated)
        return float(self.engine.get_global_grad_norm()) if updated else float("nan"), updated

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: full_shape(parameter) for name, parameter in self.parameters.items()}

    def model_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self.parameters:
            yield name, self.state.weight(name)

    def optimizer_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        try:
            for moment in MOMENTS:
                for name in self.parameters:
                    yield f"{moment}.{name}", self.state.moment(moment, name)
        finally:
            self.state.repack()

    @torch.no_grad()
    def load(self, model: Mapping[str, torch.Tensor], optimizer: Mapping[str, torch.Tensor] | None, num_updates: int):
        for name in self.parameters:
            self.state.set_weight(name, model[name])
            advance()
        if optimizer is not None and num_updates:
            self.state.create()
            for moment in MOMENTS:
                for name in self.parameters:
                    self.state.set_moment(moment, name, optimizer[f"{moment}.{name}"])
                    advance()
            self.state.activate(num_updates)

    @torch.no_grad()
    def set_master_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Set fp32 master weights that are known more precisely than the model's bf16 weights."""
        for name, value in weights:
            if name in self.parameters:
                self.state.set_weight(name, value)

    def close(self) -> None:
        """Release hooks and buffers; otherwise a rank may abort at process exit."""
        if not self._closed:
            self._closed = True
            self.engine.destroy()
            stop_deepspeed()

    def _register_direct_calls(self) -> None:
        """Handle two calls that bypass a module's forward, when ZeRO-3 would gather its weights."""
        from deepspeed.runtime.zero import register_external_parameter

        # The fused loss reads the head's weight without calling the head.
        loss = self.loss_module.head_loss
        head, _ = loss.head()
        if type(head) is nn.Linear:
            for parameter in head.parameters():
                register_external_parameter(loss, parameter)
        # Generation calls the model inside the loss module; a pass normally starts at the outermost module.
        coordinator = self.state.zero.parameter_offload.get_param_coordinator()
        causal_lm(self.loss_module.model).register_forward_pre_hook(lambda *_: coordinator.reset_step())


def _with_targets(filler: MicroBatch) -> MicroBatch:
    """The same micro-batch with targets, so that its loss depends on every trained weight."""
    labels = np.append(filler.tokens[1:], IGNORED)
    labels[np.cumsum(filler.lengths) - 1] = IGNORED
    return replace(filler, labels=labels, num_supervised=int((labels != IGNORED).sum()))
