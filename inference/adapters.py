"""Multiple LoRA adapters over one base model in memory: each row of a batch uses the adapter of its sequence.

Hu et al. 2021 (arXiv:2106.09685): W x + s B A x. With DoRA (Liu et al. 2024, arXiv:2402.09353) both terms are scaled by
m / |W + s B A|, which is constant per output once an adapter is loaded. Rows are sorted by adapter (`AdapterRows`),
so the rows of an adapter are a slice, and its two small products cost only as much as these rows.

peft's mixed batches (`adapter_names`) set a hook on every module at every step, copy the rows of each adapter and
do not support DoRA. transformers' continuous batching packs all sequences into one row, to which peft can apply
only one adapter.

T rows of a step, I inputs and O outputs of a layer, R adapter rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.inference.adapter_files import incompatible, read_config, read_tensors, scale_of
from tunesmith.inference.adapter_rows import AdapterTokens, HeadWithTokens, TokenRows
from tunesmith.inference.expert_adapters import AdaptedExperts, experts_at, num_bytes, read_factors
from tunesmith.model_files import require_undamaged
from tunesmith.modeling.base_model.multimodal import own_adapter_names
from tunesmith.modeling.expert_forward import Factors
from tunesmith.modeling.loading.text_model import own_settings

_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Pair:
    """The matrices of one layer. down: [R, I]. up: [O, R], multiplied by the adapter's scale. magnitude: [O], for DoRA:
    m / |W + s B A|."""

    down_RI: Tensor
    up_OR: Tensor
    magnitude_O: Tensor | None = None

    def num_bytes(self) -> int:
        tensors = [self.down_RI, self.up_OR, *([] if self.magnitude_O is None else [self.magnitude_O])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class _Weights:
    """An adapter in memory. pairs: by the path of their layer. experts: by path, then by the name of the parameter.
    rows: the embeddings of tokens, if it has any."""

    pairs: dict[str, Pair]
    experts: dict[str, dict[str, Factors]]
    rows: TokenRows | None

    def num_bytes(self) -> int:
        parts = [*self.pairs.values(), *([] if self.rows is None else [self.rows])]
        return sum(part.num_bytes() for part in parts) + sum(map(num_bytes, self.experts.values()))


class AdapterRows:
    """Rows of each adapter during a forward pass, as (start, stop, name). body: rows of all layers but the head. head:
    rows that reach the head."""

    body: Sequence[tuple[int, int, str]] = ()
    head: Sequence[tuple[int, int, str]] = ()


class AdaptedLinear(nn.Module):
    """A frozen linear layer plus the updates of adapters on their rows."""

    def __init__(self, inner: nn.Module, rows: AdapterRows, is_head: bool):
        super().__init__()
        self.inner, self.rows, self.is_head = inner, rows, is_head
        self.pairs: dict[str, Pair] = {}

    @property
    def weight(self) -> Tensor:
        """Weight of the frozen layer; some models read it."""
        return self.inner.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """Bias of the frozen layer; state-space layers read it."""
        return self.inner.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """x: [1, T, I] or [T, I]."""
        output = self.inner(x)
        x_TI, output_TO = x.reshape(-1, x.shape[-1]), output.view(-1, output.shape[-1])
        for start, stop, name in self.rows.head if self.is_head else self.rows.body:
            pair = self.pairs.get(name)
            if pair is None:
                continue
            change = (x_TI[start:stop] @ pair.down_RI.t()) @ pair.up_OR.t()
            if pair.magnitude_O is None:
                output_TO[start:stop] += change
                continue
            bias = self.inner.bias
            plain = output_TO[start:stop] if bias is None else output_TO[start:stop] - bias
            scaled = (plain + change) * pair.magnitude_O
            output_TO[start:stop] = scaled if bias is None else scaled + bias
        return output


class Adapters:
    """The adapters of one base model, by directory. dtype: of their weights in memory."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: torch.device):
        self.model, self.dtype, self.device = model, dtype, device
        self.rows = AdapterRows()
        self.loaded: dict[str, int] = {}
        """Bytes of each adapter in memory, least recently used first."""
        self._head = model.get_output_embeddings()  # type: ignore[operator]
        self.tokens = AdapterTokens(model, self.rows)

    def use(self, directory: str) -> None:
        """Load the adapter if necessary, and mark it as used. Raises InputError if it does not fit the base model or
        cannot be read, RunFault if it does not match the manifest of its export."""
        if directory in self.loaded:
            self.loaded[directory] = self.loaded.pop(directory)
            return
        read = self._read(Path(directory))
        for path, pair in read.pairs.items():
            self._adapted(path).pairs[directory] = pair
        for path, factors in read.experts.items():
            self._adapted_experts(path).factors[directory] = factors
        if read.rows is not None:
            self.tokens.add(directory, read.rows)
        self.loaded[directory] = read.num_bytes()

    def unload(self, directory: str) -> None:
        self.loaded.pop(directory, None)
        self.tokens.rows.pop(directory, None)
        for module in self.model.modules():
            if isinstance(module, AdaptedLinear):
                module.pairs.pop(directory, None)
            elif isinstance(module, AdaptedExperts):
                module.factors.pop(directory, None)

    def _adapted(self, path: str) -> AdaptedLinear:
        module = self.model.get_submodule(path)
        if isinstance(module, HeadWithTokens):
            return self._adapted(f"{path}.inner")
        if isinstance(module, AdaptedLinear):
            return module
        adapted = AdaptedLinear(module, self.rows, module is self._head)
        parent, _, last = path.rpartition(".")
        setattr(self.model.get_submodule(parent), last, adapted)
        return adapted

    def _adapted_experts(self, path: str) -> AdaptedExperts:
        module = self.model.get_submodule(path)
        if not isinstance(module, AdaptedExperts):
            module = AdaptedExperts(module, self.rows)
            parent, _, last = path.rpartition(".")
            setattr(self.model.get_submodule(parent), last, module)
        return module

    def _read(self, directory: Path) -> _Weights:
        require_undamaged(directory)
        config = read_config(directory)
        stored = read_tensors(directory)
        own = own_adapter_names(stored, {_plain_path(path) for path, _ in self.model.named_modules()})
        tensors = {own[name]: tensor for name, tensor in stored.items()}
        if any(name != renamed for name, renamed in own.items()):
            config |= own_settings(config, stored)
        rows = None
        if config.get("trainable_token_indices"):
            try:
                rows = self.tokens.read(tensors, config, self.dtype, self.device)
            except ValueError as error:
                raise incompatible(directory, str(error)) from error
        experts = self._experts(directory, config, tensors)
        if not tensors and experts:
            return _Weights({}, experts, rows)
        return _Weights(self._pairs(directory, config, tensors), experts, rows)

    def _experts(
        self, directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]
    ) -> dict[str, dict[str, Factors]]:
        """Take the tensors of experts out of an adapter's, as factors by the path of their module."""
        experts: dict[str, dict[str, Factors]] = {}
        for name in sorted(name for name in tensors if name.endswith(_DOWN)):
            stem = name.removesuffix(_DOWN)
            wrapper = stem.removeprefix(_PREFIX)
            located = experts_at(self.model, wrapper)
            if located is None or f"{stem}{_UP}" not in tensors:
                continue
            path, module = located
            factors = [tensors.pop(key).to(self.device, self.dtype) for key in (name, f"{stem}{_UP}")]
            try:
                read = read_factors(path, wrapper, module, config, factors, partial(scale_of, config))
            except ValueError as error:
                raise incompatible(directory, str(error)) from error
            experts.setdefault(path, {})[read[0]] = read[1]
        return experts

    def _pairs(self, directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Pair]:
        pairs: dict[str, Pair] = {}
        for name in sorted(tensors):
            if not name.endswith(".lora_A.weight"):
                continue
            stem = name.removesuffix(".lora_A.weight")
            path = stem.removeprefix(_PREFIX)
            up = tensors.get(f"{stem}.lora_B.weight")
            if up is None:
                raise incompatible(directory, f"{path} has no lora_B")
            if up.dim() != 2 or tensors[name].dim() != 2 or not tensors[name].numel():
                raise incompatible(directory, f"{path} has weights that are no matrices")
            magnitude = tensors.get(
                f"{stem}.lora_magnitude_vector", tensors.get(f"{stem}.lora_magnitude_vector.weight")
            )
            pairs[path] = self._pair(
                directory, path, tensors[name], up, magnitude, scale_of(config, path, tensors[name].shape[0])
            )
        num_read = sum(2 + (pair.magnitude_O is not None) for pair in pairs.values())
        if not pairs or num_read != len(tensors):
            unexpected = next(
                (name for name in tensors if ".lora_A.weight" not in name and ".lora_B.weight" not in name), ""
            )
            raise incompatible(
                directory, f"it contains weights other than LoRA pairs of linear layers: {unexpected or 'none at all'}"
            )
        return pairs

    def _pair(
        self, directory: Path, path: str, down_RI: Tensor, up_OR: Tensor, magnitude_O: Tensor | None, scale: float
    ) -> Pair:
        try:
            module = self.model.get_submodule(path)
        except AttributeError:
            raise incompatible(directory, f"the base model has no layer {path}") from None
        module = module.inner if isinstance(module, HeadWithTokens) else module
        inner = module.inner if isinstance(module, AdaptedLinear) else module
        shape = _shape_of(inner)
        if shape is None or ".experts." in path:
            raise incompatible(directory, f"{path} is a {type(inner).__name__}, not a linear layer")
        if shape != (up_OR.shape[0], down_RI.shape[1]) or down_RI.shape[0] != up_OR.shape[1]:
            raise incompatible(
                directory,
                f"{path} is {list(shape)} in the base model, {[up_OR.shape[0], down_RI.shape[1]]} in the adapter",
            )
        up_OR = up_OR.float() * scale
        if magnitude_O is not None:
            weight: Any = inner.weight
            weight_OI = weight.detach().float().cpu()
            weight_OI = weight_OI.t() if isinstance(inner, Conv1D) else weight_OI
            norm_O = (weight_OI + up_OR @ down_RI.float()).norm(dim=1)
            magnitude_O = (magnitude_O.float().flatten() / norm_O).to(self.device, self.dtype)
        return Pair(down_RI.to(self.device, self.dtype), up_OR.to(self.device, self.dtype), magnitude_O)


def _plain_path(path: str) -> str:
    """The path of a module without the layers that are put around it here."""
    return path.replace(".inner", "")


def _shape_of(module: nn.Module) -> tuple[int, int] | None:
    """(outputs, inputs) of a linear layer; None for any other module."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return outputs, inputs
    return None
