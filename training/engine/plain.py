"""The plain PyTorch engine: whole weights on every rank, gradients summed over ranks.

Implements the contract of `training.engine.protocol`.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist

from tunesmith.configs.recipe import Optimization
from tunesmith.data.index.loader import StepBatch
from tunesmith.kernels.dispatch import Kernels
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.progress import advance
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.loss_scale import LossScale, scaled
from tunesmith.training.engine.protocol import BatchSums
from tunesmith.training.engine.tensors import reference_tensors, to_tensors, unrelated_mean
from tunesmith.training.optim.optimizer import MOMENTS, make_optimizer, moment_of, set_moments

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

    def train_batch(self, batch: StepBatch) -> BatchSums:
        """Forward and backward of every micro-batch; leaves the contract's gradient in `.grad`."""
        self.loss_module.train()
        loss_sum = torch.zeros((), dtype=torch.float64)
        num_correct = 0
        shared = unrelated_mean(self.loss_module, batch, self.ranks, self.device)
        for micro_batch in batch.micro_batches:
            if micro_batch.filler:
                continue
            sums = self.loss_module(
                *to_tensors(micro_batch, self.device),
                label_smoothing=self.label_smoothing,
                **reference_tensors(micro_batch, self.device),
                **shared,
            )
            scaled(sums.loss_sum / batch.global_targets, self.loss_scale).backward()
            loss_sum += sums.loss_sum.detach().double().cpu()
            num_correct += int(sums.num_correct)
        self._sum_gradients()
        total_loss, total_correct = self.ranks.sum(float(loss_sum), float(num_correct))
        return BatchSums(total_loss, int(total_correct), batch.global_supervised_tokens, batch.global_targets)

    def optim_step(self, learning_rate: float) -> tuple[float, bool]:
        """Clip and apply the gradient. Returns its norm before clipping, and whether the weights were updated.

        A non-finite gradient is discarded; it was summed over ranks, so every rank decides the same.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if self.loss_scale is not None:
            self.loss_scale.unscale_(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = bool(torch.isfinite(norm))
        if self.loss_scale is not None:
            self.loss_scale.update(finite=finite)
        if finite:
            if self.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(list(self.parameters.values()), self.max_grad_norm, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm), finite

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
        if optimizer is not None and num_updates:
            for name, parameter in self.parameters.items():
                moments = {moment: optimizer[f"{moment}.{name}"] for moment in MOMENTS}
                set_moments(self.optimizer, parameter, moments, num_updates)
                advance()

    def close(self) -> None:
        pass

    def _sum_gradients(self) -> None:
        """Sum gradients over ranks in flat buckets: few large collectives instead of many small ones."""
        if self.ranks.world_size == 1:
            return
        bucket: list[torch.nn.Parameter] = []
        num_bytes = 0
        for parameter in self.parameters.values():
            if parameter.grad is None:  # a rank without a micro-batch takes part, too
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter)
            num_bytes += parameter.numel() * parameter.element_size()
            if num_bytes >= _BUCKET_BYTES:
                _all_reduce_bucket(bucket)
                bucket, num_bytes = [], 0
        if bucket:
            _all_reduce_bucket(bucket)


def _all_reduce_bucket(parameters: list[torch.nn.Parameter]) -> None:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
