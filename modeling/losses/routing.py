"""What the routers of a mixture of experts decide in a forward pass, for the router loss and for the run's record.

Router logits are taken by hooks from the modules whose outputs transformers records as `router_logits`.

L layers with a router, E experts, K experts per token, N tokens, B documents of a padded batch, S tokens of its
longest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.modeling.adapters.targets import expert_shapes
from tunesmith.modeling.base_model.experts import PER_TOKEN
from tunesmith.modeling.parts import causal_lm


class RoutingSums(NamedTuple):
    """Sums over the tokens of the recorded forward passes, without padding; fp32."""

    probability_LE: Tensor
    """Of the routing probabilities, softmax over all experts; with gradient."""
    count_LE: Tensor
    """Tokens for which an expert is among the K most probable."""
    entropy_L: Tensor
    """Of the entropy of a token's routing probabilities, nats."""
    num_tokens: int


def load_balancing_loss(share_E: Tensor, probability_E: Tensor, num_rows: float) -> Tensor:
    """Return E sum_e f_e P_e, a scalar (Switch Transformer, arXiv:2101.03961, equation 4).

    share_E: f_e, the share of (token, layer) pairs that choose an expert. probability_E: sum of the routing
    probabilities over the pairs, whose mean is P_e. num_rows: number of the pairs.
    """
    return len(share_E) * (share_E * probability_E).sum() / num_rows


class RouterRecorder:
    """Hooks on the routers of a model, which record only inside `recording`: not in evaluation, in generation, or when
    gradient checkpointing repeats a forward pass. Without routers it records nothing."""

    def __init__(self, model: nn.Module):
        inner = causal_lm(model)
        stacks = list(expert_shapes(inner).values())
        self._routers = _routers(inner) if stacks else []
        self.num_layers, self.num_experts = len(self._routers), max((shape[0] for shape in stacks), default=0)
        self.mask_BS: Tensor | None = None
        """bool: the tokens of a padded batch, set before its forward pass; None: there is no padding."""
        self._logits: list[list[Tensor]] = []
        self._recording = False
        text: Any = inner.config.get_text_config()
        per_token = (getattr(text, name, None) for name in PER_TOKEN)
        self.per_token = next((value for value in per_token if isinstance(value, int)), 1)
        for layer, (router, index) in enumerate(self._routers):
            router.register_forward_hook(partial(self._record, layer, index))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward passes inside, for `sums`."""
        self._logits, self._recording, self.mask_BS = [[] for _ in self._routers], True, None
        try:
            yield
        finally:
            self._recording, self.mask_BS = False, None

    def sums(self) -> RoutingSums | None:
        """Return the sums of what the last `recording` recorded, and forget it. None if it recorded nothing."""
        layers, self._logits = [torch.cat(parts) for parts in self._logits if parts], []
        if not layers:
            return None
        probabilities, counts, entropies = [], [], []
        for logits_NE in layers:
            log_NE = logits_NE.float().log_softmax(-1)
            chosen_NK = log_NE.detach().topk(self.per_token, dim=-1).indices
            experts_E = torch.arange(log_NE.shape[-1], device=log_NE.device)
            counts.append(
                torch.stack([(k_N[:, None] == experts_E).sum(0) for k_N in chosen_NK.unbind(1)]).sum(0).float()
            )
            probabilities.append(log_NE.exp().sum(0))
            entropies.append(-(log_NE.detach().exp() * log_NE.detach()).sum())
        return RoutingSums(
            torch.stack(probabilities), torch.stack(counts), torch.stack(entropies), num_tokens=len(layers[0])
        )

    def _record(self, layer: int, index: int, router: nn.Module, arguments: Any, output: Any) -> None:
        if not self._recording:
            return
        logits: Tensor = output[index] if isinstance(output, tuple) else output
        logits_NE = logits.reshape(-1, logits.shape[-1])
        if self.mask_BS is not None:
            logits_NE = logits_NE[self.mask_BS.reshape(-1)]
        self._logits[layer].append(logits_NE)


def _routers(model: PreTrainedModel) -> list[tuple[nn.Module, int]]:
    """The modules whose outputs are recorded as router logits, in the model's order, each with the place of the logits
    in its output."""
    routers: list[tuple[nn.Module, int]] = []
    for path, module in model.named_modules():
        for recorder in _declared(model):
            kind = getattr(recorder, "target_class", recorder)
            part = getattr(recorder, "layer_name", None)
            if not isinstance(kind, type) or not isinstance(module, kind):
                continue
            if part is None or f".{part.strip('.')}." in f".{path}.":
                routers.append((module, getattr(recorder, "index", 1)))
    return routers


def _declared(model: PreTrainedModel) -> list[Any]:
    """What the classes of the model declare to be recorded as router logits: a class, or an OutputRecorder."""
    declared: list[Any] = []
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            entry = (getattr(type(module), "_can_record_outputs", None) or {}).get("router_logits")
            entries = entry if isinstance(entry, list) else [entry] if entry is not None else []
            declared += [entry for entry in entries if entry not in declared]
    return declared
