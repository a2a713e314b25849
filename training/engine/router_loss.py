"""The load-balancing loss of a mixture of experts over an optimizer step, and the facts about its routing.

    E sum_e f_e P_e                         Switch Transformer (Fedus et al. 2021, arXiv:2101.03961), equations 4 to 6

f_e is the share of (token, layer) pairs whose K most probable experts include e, P_e the mean probability of e over
these pairs. As in transformers' load_balancing_loss_func, pairs of all layers count alike, and padding does not.

P_e is always a mean over the whole optimizer step, so that its gradient adds up over micro-batches and ranks. f_e has
no gradient. It is taken over the micro-batch of all ranks (scope micro_batch), or over the step (scope global), then
from a routing pass without gradient before the first micro-batch.

L layers with a router, E experts.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tunesmith.configs.sections.optimization import RouterLoss
from tunesmith.data.index.loader import StepBatch
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.routing import RouterRecorder, RoutingSums, load_balancing_loss
from tunesmith.modeling.parts import causal_lm
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.memory import MemoryWatch, largest
from tunesmith.training.engine.tensors import to_tensors


@dataclass(frozen=True)
class RoutingFacts:
    """Of a step, over all ranks. router_loss: before the coefficient. expert_load: tokens of an expert divided by the
    mean of its layer, the largest of all layers. router_entropy: mean entropy of the routing probabilities, nats."""

    router_loss: float
    expert_load: float
    router_entropy: float


def router_coefficient(model: nn.Module, options: RouterLoss) -> float:
    """Return the weight of the router loss: the recipe's, or that of the model's configuration, or 0."""
    own = getattr(causal_lm(model).config.get_text_config(), "router_aux_loss_coef", None)
    return float(own or 0.0) if options.coefficient is None else options.coefficient


class StepRouting:
    """Accumulates the routing of a step. Inactive for models without routers: every method then does nothing.

    All ranks call `start`, `term` for the same number of micro-batches, and `facts`.
    """

    def __init__(self, loss_module: CausalLoss, options: RouterLoss, ranks: Ranks, device: str):
        self.is_active, self.meets_ranks, self.coefficient = False, False, 0.0
        recorder = getattr(loss_module, "routing", None)  # the losses of other model kinds have none
        if recorder is None or recorder.num_layers == 0:
            return
        self._loss, self._ranks, self._device = loss_module, ranks, device
        self._recorder: RouterRecorder = recorder
        self.is_active = True
        self.coefficient = router_coefficient(loss_module.model, options)
        self._scope = options.scope
        self.meets_ranks = self._scope == "micro_batch" and ranks.world_size > 1
        """Whether `term` is a collective."""
        self._share_E: Tensor | None = None
        self._rows = 1

    def start(self, batch: StepBatch, memory: MemoryWatch) -> None:
        """Start a step; with scope global, route its tokens. Raises MemoryRanOut."""
        if not self.is_active:
            return
        shape = self._recorder.num_layers, self._recorder.num_experts
        self._rows = batch.global_num_tokens * shape[0]
        self._count_LE = torch.zeros(shape, device=self._device)
        self._entropy, self._value = torch.zeros((), device=self._device), torch.zeros((), device=self._device)
        if self._scope == "global" and self.coefficient:
            count_E = memory.run(partial(self._routed, batch, memory), largest(batch.micro_batches))
            self._share_E = self._over_ranks(count_E) / self._rows

    def term(self, *, counts: bool) -> Tensor | None:
        """Return the weighted loss of the micro-batch that was just recorded, a part of the step's, with gradient; zero
        if nothing was. counts: whether its tokens belong to the batch (those of a filler do not)."""
        if not self.is_active:
            return None
        sums = self._recorder.sums()
        none_E = torch.zeros_like(self._count_LE[0])
        count_E = none_E if sums is None or not counts else sums.count_LE.sum(0)
        share_E = self._share_E
        if share_E is None:
            count_E = self._over_ranks(count_E) if self.meets_ranks else count_E
            rows = count_E.sum() / self._recorder.per_token
            share_E = count_E / rows.clamp(min=1)
        if sums is None:
            return none_E.sum()
        weight = 1.0 if counts else 0.0
        loss = weight * load_balancing_loss(share_E, sums.probability_LE.sum(0), self._rows)
        self._note(sums, loss, weight)
        return self.coefficient * loss

    def facts(self) -> RoutingFacts | None:
        """Return the facts about the step; a collective. None without routers."""
        if not self.is_active:
            return None
        parts = (self._count_LE.reshape(-1), self._entropy.reshape(1), self._value.reshape(1))
        flat = self._over_ranks(torch.cat(parts))
        count_LE = flat[:-2].view_as(self._count_LE)
        load_L = count_LE.amax(1) / count_LE.mean(1).clamp(min=1e-9)
        entropy, value = flat[-2:].tolist()
        return RoutingFacts(value, float(load_L.max()), entropy / self._rows)

    def _routed(self, batch: StepBatch, memory: MemoryWatch) -> Tensor:
        """Route this rank's tokens without gradient: how often each expert is chosen."""
        memory.enter("forward")
        count_E = torch.zeros(self._recorder.num_experts, device=self._device)
        for micro_batch in batch.micro_batches:  # fillers, too: with ZeRO-3 all ranks run the same forward passes
            sums = self._loss.route(*to_tensors(micro_batch, self._device))
            if sums is not None and not micro_batch.filler:
                count_E += sums.count_LE.sum(0)
        return count_E

    def _note(self, sums: RoutingSums, loss: Tensor, weight: float) -> None:
        self._count_LE += weight * sums.count_LE
        self._entropy += weight * sums.entropy_L.sum()
        self._value += loss.detach()

    def _over_ranks(self, values: Tensor) -> Tensor:
        if self._ranks.world_size > 1:
            dist.all_reduce(values)
        return values
