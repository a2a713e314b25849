"""The plain PyTorch engine: whole weights on every rank, gradients summed over ranks.

Implements the contract of `training.engine.protocol`.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
import torch.distributed as dist

from tunesmith.configs.sections.optimization import Optimization
from tunesmith.data.index.loader import MicroBatch, StepBatch, filler
from tunesmith.kernels.compute_copy import expire_copies
from tunesmith.kernels.dispatch import Kernels
from tunesmith.modeling.losses.causal import CausalLoss, LossSums
from tunesmith.progress import advance
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.loss_scale import LossScale, scaled
from tunesmith.training.engine.memory import MemoryWatch, largest, release_cached_memory
from tunesmith.training.engine.protocol import BatchSums
from tunesmith.training.engine.router_loss import StepRouting
from tunesmith.training.engine.tensors import reference_tensors, to_tensors, unrelated_mean
from tunesmith.training.optim.optimizer import MOMENTS, allocate_state, make_optimizer, moment_of, set_moments

_BUCKET_BYTES = 64 << 20


class PlainEngine:
    """Trains `loss_module` on one device. parameters: trained parameters, fp32, by stable name. kernels: for the
    optimizer; None: torch's and bitsandbytes' own optimizers. loss_scale: in fp16."""

    sharded = False

    def __init__(
        self,
        loss_module: CausalLoss,
        parameters: Mapping[str, torch.nn.Parameter],
        optimization: Optimization,
        ranks: Ranks,
        *,
        device: str,
        kernels: Kernels | None = None,
        loss_scale: LossScale | None = None,
    ):
        self.loss_module, self.parameters, self.ranks, self.device = loss_module, dict(parameters), ranks, device
        self.label_smoothing = optimization.label_smoothing
        self.max_grad_norm, self.loss_scale = optimization.max_grad_norm, loss_scale
        self.optimizer = make_optimizer(self.parameters, optimization, kernels)
        self._memory = MemoryWatch(ranks, together=True)
        self._largest = filler([1])
        self._routing = StepRouting(loss_module, optimization.router_loss, ranks, device)

    def train_batch(self, batch: StepBatch) -> BatchSums:
        """Forward and backward of every micro-batch; leaves the contract's gradient in `.grad`."""
        self.loss_module.train()
        self._largest = largest(batch.micro_batches)
        loss_sum, num_correct = 0.0, 0
        shared = unrelated_mean(self.loss_module, batch, self.ranks, self.device, self._memory)
        self._routing.start(batch, self._memory)
        for micro_batch in batch.micro_batches:
            loss, correct = self._run_pass(micro_batch, batch.global_targets, shared)
            loss_sum, num_correct = loss_sum + loss, num_correct + correct
        self._sum_gradients()
        total_loss, total_correct = self.ranks.sum(loss_sum, float(num_correct))
        return BatchSums(
            total_loss, int(total_correct), batch.global_supervised_tokens, batch.global_targets, self._routing.facts()
        )

    def _run_pass(
        self, micro_batch: MicroBatch, global_targets: int, shared: Mapping[str, torch.Tensor]
    ) -> tuple[float, int]:
        """Forward and backward of one micro-batch. Returns the sum of its losses, and its correct predictions.

        Ranks agree on memory after a part without collectives: the router loss is between two parts if it is one.
        """
        counts = not micro_batch.filler
        forward = partial(self._forward, micro_batch, shared)
        if self._routing.meets_ranks:
            sums = self._memory.run(forward, micro_batch)
            term = self._routing.term(counts=counts)
            return self._memory.run(partial(self._backward, sums, term, global_targets), micro_batch)
        return self._memory.run(
            lambda: self._backward(forward(), self._routing.term(counts=counts), global_targets), micro_batch
        )

    def _forward(self, micro_batch: MicroBatch, shared: Mapping[str, torch.Tensor]) -> LossSums | None:
        """Forward of one micro-batch; None for a filler."""
        self._memory.enter("forward")
        if micro_batch.filler:
            return None
        with self.loss_module.routing.recording():
            return self.loss_module(
                *to_tensors(micro_batch, self.device),
                label_smoothing=self.label_smoothing,
                **reference_tensors(micro_batch, self.device),
                **shared,
            )

    def _backward(
        self, sums: LossSums | None, router_term: torch.Tensor | None, global_targets: int
    ) -> tuple[float, int]:
        """Backward of one micro-batch. router_term: its part of the router loss."""
        if sums is None:
            return 0.0, 0
        self._memory.enter("backward")
        loss = sums.loss_sum / global_targets
        scaled(loss if router_term is None else loss + router_term, self.loss_scale).backward()
        return float(sums.loss_sum.detach().double().cpu()), int(sums.num_correct)

    def optim_step(self, learning_rate: float) -> tuple[float, bool]:
        """Clip and apply the gradient. Returns its norm before clipping, and whether the weights were updated.

        A non-finite gradient is discarded; it was summed over ranks, so every rank decides the same. What the update
        needs is allocated before the first weight changes.
        """
        norm = self._memory.run(self._prepare_update, self._largest)
        finite = bool(torch.isfinite(norm))
        if self.loss_scale is not None:
            self.loss_scale.update(finite=finite)
        if finite:
            if self.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(list(self.parameters.values()), self.max_grad_norm, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            expire_copies()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm), finite

    def _prepare_update(self) -> torch.Tensor:
        """Allocate the optimizer's state and temporaries. Returns the norm of the gradient, which is unscaled here."""
        allocate_state(self.optimizer)
        self._memory.enter("update")
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if self.loss_scale is not None:
            self.loss_scale.unscale_(gradients)
        return torch.nn.utils.get_total_norm(gradients)

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        release_cached_memory()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}

    def model_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.parameters.items():
            yield name, parameter.detach()

    def optimizer_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for moment in MOMENTS:
            for name, parameter in self.parameters.items():
                yield f"{moment}.{name}", moment_of(self.optimizer, parameter, moment)

    def load(self, model: Mapping[str, torch.Tensor], optimizer: Mapping[str, torch.Tensor] | None, num_updates: int):
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(model[name])
                advance()
        expire_copies()
        if optimizer is not None and num_updates:
            for name, parameter in self.parameters.items():
                moments = {moment: optimizer[f"{moment}.{name}"] for moment in MOMENTS}
                set_moments(self.optimizer, parameter, moments, num_updates)
                advance()

    def close(self) -> None:
        """Free gradients and moments, so that the export has their memory."""
        if hasattr(self, "optimizer"):
            self.optimizer.zero_grad(set_to_none=True)
            del self.optimizer
            release_cached_memory()

    def _sum_gradients(self) -> None:
        """Sum gradients over ranks in flat buckets: few large collectives instead of many small ones."""
        if self.ranks.world_size == 1:
            return
        buckets = _buckets(list(self.parameters.values()))
        flat_N = self._memory.run(partial(self._prepare_reduction, buckets), self._largest)
        for bucket in buckets:
            _all_reduce_bucket(bucket, flat_N)

    def _prepare_reduction(self, buckets: list[list[torch.nn.Parameter]]) -> torch.Tensor:
        """Allocate the flat bucket, and the gradients of a rank without a micro-batch, which takes part, too."""
        self._memory.enter("reduction")
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        first = buckets[0][0]
        return first.new_empty(max(sum(parameter.numel() for parameter in bucket) for bucket in buckets))


def _buckets(parameters: list[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Divide the parameters into lists of about _BUCKET_BYTES, in order."""
    buckets: list[list[torch.nn.Parameter]] = [[]]
    num_bytes = 0
    for parameter in parameters:
        if num_bytes >= _BUCKET_BYTES:
            buckets.append([])
            num_bytes = 0
        buckets[-1].append(parameter)
        num_bytes += parameter.numel() * parameter.element_size()
    return buckets


def _all_reduce_bucket(parameters: list[torch.nn.Parameter], flat_N: torch.Tensor) -> None:
    """Sum the gradients of a bucket over the ranks. flat_N: a buffer of at least its size."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sizes = [gradient.numel() for gradient in gradients]
    flat_n = flat_N[: sum(sizes)]
    torch.cat([gradient.reshape(-1) for gradient in gradients], out=flat_n)
    dist.all_reduce(flat_n)
    for gradient, summed in zip(gradients, flat_n.split(sizes), strict=True):
        gradient.copy_(summed.view_as(gradient))
