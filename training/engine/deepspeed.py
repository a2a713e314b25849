"""The DeepSpeed engine: optimizer state, gradients and weights sharded over the ranks (ZeRO stages 1, 2 and 3).

Implements the contract of `training.engine.protocol`. DeepSpeed averages gradients over ranks, so the loss is
multiplied by the world size. The accumulation boundary is set for every micro-batch, so that a step may have any number
of them. In stage 1, which reduces gradients only at the boundary, it comes after the last micro-batch: until then a
rank that runs out of memory leaves no other waiting (training.engine.memory).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith.configs.plan import ParallelismFacts
from tunesmith.configs.sections.optimization import Optimization
from tunesmith.data.index.loader import IGNORED, MicroBatch, StepBatch, filler
from tunesmith.kernels.compute_copy import expire_copies
from tunesmith.modeling.adapters.new_rows import wrappers_of
from tunesmith.modeling.adapters.targets import leaf_modules
from tunesmith.modeling.losses.causal import CausalLoss, LossSums
from tunesmith.modeling.parts import causal_lm, head_of
from tunesmith.progress import advance
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.deepspeed_start import start_deepspeed, stop_deepspeed
from tunesmith.training.engine.loss_scale import LossScale
from tunesmith.training.engine.memory import MemoryWatch, Phase, largest, release_cached_memory, reserve
from tunesmith.training.engine.protocol import BatchSums
from tunesmith.training.engine.router_loss import StepRouting
from tunesmith.training.engine.tensors import reference_tensors, to_tensors, unrelated_mean
from tunesmith.training.engine.zero_state import ZeroState
from tunesmith.training.optim.optimizer import MOMENTS, allocate_state, full_shape, make_optimizer


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
        self._reduces_at_end = parallelism.zero_stage == 1
        self._memory = MemoryWatch(ranks, together=self._reduces_at_end)
        self._largest = filler([1])
        self._routing = StepRouting(loss_module, optimization.router_loss, ranks, device)
        self.optimizer = make_optimizer(self.parameters, optimization)
        deepspeed = start_deepspeed(device, ranks)
        if self.sharded:
            self._gather_experts_together(loss_module)
        with redirect_stdout(StringIO()):  # one of its optimizers prints its memory use repeatedly
            self.engine, zero, *_ = deepspeed.initialize(
                model=loss_module, optimizer=self.optimizer, config=_config(parallelism), dist_init_required=False
            )
        self.state = ZeroState(zero, self.optimizer, self.parameters, ranks, parallelism.zero_stage)
        if self.sharded:
            self._register_direct_calls()

    def train_batch(self, batch: StepBatch) -> BatchSums:
        """Forward and backward of every micro-batch; leaves the contract's gradient, sharded over the ranks."""
        self.loss_module.train()
        if self.loss_scale is not None:  # DeepSpeed multiplies the loss by it, and divides gradient and norm by it
            self.state.zero.loss_scaler.cur_scale = self.loss_scale.scale
        loss_sum, num_correct = 0.0, 0
        shared = unrelated_mean(self.loss_module, batch, self.ranks, self.device, self._memory)
        self._largest = largest(batch.micro_batches)
        self._routing.start(batch, self._memory)
        for number, micro_batch in enumerate(batch.micro_batches, start=1):
            last = number == len(batch.micro_batches)
            self.engine.set_gradient_accumulation_boundary(last and not self._reduces_at_end)
            # A filler runs like any other micro-batch: every rank takes part in every gather. Its gradient is zero.
            scale = self.ranks.world_size / batch.global_targets if micro_batch.num_supervised else 0.0
            loss, correct = self._run_pass(micro_batch, scale, shared)
            loss_sum, num_correct = loss_sum + loss, num_correct + correct
        if self._reduces_at_end:
            self._reduce()
        total_loss, total_correct = self.ranks.sum(loss_sum, float(num_correct))
        return BatchSums(
            total_loss, int(total_correct), batch.global_supervised_tokens, batch.global_targets, self._routing.facts()
        )

    def _run_pass(self, micro_batch: MicroBatch, scale: float, shared: Mapping[str, torch.Tensor]) -> tuple[float, int]:
        """Forward and backward of one micro-batch. Returns the sum of its losses, and its correct predictions. The
        router loss is between the two as in the plain engine."""
        forward = partial(self._forward, micro_batch, shared)
        if self._routing.meets_ranks:
            sums = self._memory.run(forward, micro_batch)
            term = self._routing.term(counts=not micro_batch.filler)
            return self._memory.run(partial(self._backward, micro_batch, sums, term, scale), micro_batch)

        def whole() -> tuple[float, int]:
            sums = forward()
            return self._backward(micro_batch, sums, self._routing.term(counts=not micro_batch.filler), scale)

        return self._memory.run(whole, micro_batch)

    def _forward(self, micro_batch: MicroBatch, shared: Mapping[str, torch.Tensor]) -> LossSums:
        self._memory.enter("forward")
        counts = micro_batch.num_supervised > 0
        tensors = to_tensors(micro_batch if counts else _with_targets(micro_batch), self.device)
        reference = reference_tensors(micro_batch, self.device)
        with self.loss_module.routing.recording():
            return self.engine(*tensors, label_smoothing=self.label_smoothing, **reference, **shared)

    def _backward(
        self, micro_batch: MicroBatch, sums: LossSums, router_term: torch.Tensor | None, scale: float
    ) -> tuple[float, int]:
        self._memory.enter("backward")
        loss = sums.loss_sum * scale
        if router_term is not None:
            loss = loss + router_term * self.ranks.world_size
        self.engine.backward(loss, scale_wrt_gas=False)
        if not micro_batch.num_supervised:
            return 0.0, 0
        return float(sums.loss_sum.detach().double().cpu()), int(sums.num_correct)

    def _reduce(self) -> None:
        """Stage 1: sum the gradients over the ranks, each for the parameters that it updates."""
        self._memory.run(partial(self._reserve, "reduction"), self._largest)
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.allreduce_gradients()

    def _reserve(self, phase: Phase) -> None:
        """Have memory for what DeepSpeed allocates between collectives: copies of this rank's share of the gradients,
        and the buffers of a reduction."""
        self._memory.enter(phase)
        values = 2 * sum(flat.numel() for flat in self.state.flats()) + 2 * self.engine.zero_reduce_bucket_size()
        reserve(values * torch.float32.itemsize, self.device)

    def optim_step(self, learning_rate: float) -> tuple[float, bool]:
        """Clip and apply the gradient. Returns its norm before clipping, and whether the weights were updated.

        The norm is computed over all ranks before anything is applied, so every rank decides the same.
        """
        self._memory.run(self._prepare_update, self._largest)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        expire_copies()
        updated = self.engine.was_step_applied()
        if self.loss_scale is not None:
            self.loss_scale.update(finite=updated)
        return float(self.engine.get_global_grad_norm()) if updated else float("nan"), updated

    def _prepare_update(self) -> None:
        if self._reduces_at_end:
            allocate_state(self.optimizer)
            self._reserve("update")
        else:
            self._memory.enter("update")

    def drop_gradients(self) -> None:
        """Stage 1 only: bring DeepSpeed back to where it is before the first micro-batch of a step."""
        zero = self.state.zero
        zero.zero_grad()
        for reduced in (getattr(zero, "averaged_gradients", {}), getattr(zero, "all_grad_tensors", {})):
            for group in reduced:
                reduced[group] = None
        if hasattr(zero, "micro_step_id"):  # counts the buffers of a step; bf16's optimizer has none
            zero.micro_step_id, zero.ready_for_gradients = -1, False
        while zero._backward_active_depth:  # an interrupted backward pass
            zero.exit_backward()
        zero.clear_backward_seen_flag()
        release_cached_memory()

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
        expire_copies()
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
        expire_copies()

    def close(self) -> None:
        """Release hooks and buffers; otherwise a rank may abort at process exit."""
        if not self._closed:
            self._closed = True
            self.engine.destroy()
            stop_deepspeed()

    @staticmethod
    def _gather_experts_together(model: nn.Module) -> None:
        """Gather the weights of all experts of a layer, and their adapters, at once: which of them are used depends on
        the tokens of a rank, and all ranks take part in every gather."""
        from deepspeed.utils import set_z3_leaf_module

        for module in leaf_modules(model):
            set_z3_leaf_module(module, True)

    def _register_direct_calls(self) -> None:
        """Handle two calls that bypass a module's forward, when ZeRO-3 would gather its weights."""
        from deepspeed.runtime.zero import register_external_parameter

        # The fused loss reads the head's weight without calling the head.
        loss = self.loss_module.head_loss
        head = head_of(causal_lm(self.loss_module.model))
        wrappers = [module for _, module in wrappers_of(self.loss_module.model)]
        if type(head) is nn.Linear or head in wrappers:
            for parameter in head.parameters():
                register_external_parameter(loss, parameter)
        # Embedding and head with trained rows read these without calling the module that holds them.
        for module in wrappers:
            for parameter in module.token_adapter.trainable_tokens_delta.parameters():
                register_external_parameter(module, parameter)
        # Generation calls the model inside the loss module; a pass normally starts at the outermost module.
        coordinator = self.state.zero.parameter_offload.get_param_coordinator()
        causal_lm(self.loss_module.model).register_forward_pre_hook(lambda *_: coordinator.reset_step())


def _config(parallelism: ParallelismFacts) -> dict[str, Any]:
    """The planned configuration. In stage 1 gradients are reduced after the last backward pass, not during it, also
    where the plan of an earlier version or a configuration of the user's says otherwise."""
    assert parallelism.deepspeed is not None
    config = dict(parallelism.deepspeed)
    if parallelism.zero_stage == 1:
        config["zero_optimization"] = {**config["zero_optimization"], "overlap_comm": False}
    return config


def _with_targets(filler: MicroBatch) -> MicroBatch:
    """The same micro-batch with targets, so that its loss depends on every trained weight."""
    labels = np.append(filler.tokens[1:], IGNORED)
    labels[np.cumsum(filler.lengths) - 1] = IGNORED
    return replace(filler, labels=labels, num_supervised=int((labels != IGNORED).sum()))
