"""What gets an adapter, discovered in the module tree: linear and Conv1D layers, embeddings, experts, routers.

Experts are held as one parameter per projection, [E, O, I] or [E, I, O], in a module that is not a linear layer. peft
adapts such parameters by name (`target_parameters`). E experts, I inputs, O outputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.configs.sections.method import Lora
from tunesmith.errors import InputError
from tunesmith.modeling.base_model.adapter_targets import is_adaptable, require_known
from tunesmith.modeling.base_model.experts import ROUTER, is_stacked
from tunesmith.modeling.quantization.nf4_stack import parameter_names, stacks_of

LINEAR = (nn.Linear, nn.Embedding, Conv1D)
_OLD_NAMES = ("gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj")
"""Names that peft takes for those of single experts in files of transformers 4, and replaces by the stacked experts,
also if a module of the model has the name (a shared expert, a dense layer). The weight's own name avoids this."""


@dataclass(frozen=True)
class Targets:
    """Ends of paths, as peft matches them. modules: for `target_modules`, or all-linear. parameters: for
    `target_parameters`."""

    modules: list[str] | str
    parameters: list[str]


def expert_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters that hold the matrices of several experts, by path; in 4 bits, too."""
    shapes = {path: stack.shape for path, stack in stacks_of(model).items()}
    for path, parameter in model.named_parameters():
        # Under ZeRO-3 the parameter is sharded, and its whole shape an attribute.
        if is_stacked(path, shape := tuple(getattr(parameter, "ds_shape", parameter.shape))):
            shapes[path] = shape
    return shapes


def has_experts(model: nn.Module) -> bool:
    """Whether the model is a mixture of experts."""
    return bool(expert_shapes(model))


def leaf_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose weights one forward uses together, or only some of, depending on the tokens: those that
    hold experts, and modules that peft adapts by parameter, whose adapters are not called."""
    holders = {path.rpartition(".")[0] for path in expert_shapes(model)}
    leaves: dict[str, nn.Module] = {}
    for path, module in model.named_modules():  # outer ones first
        is_list = isinstance(module, nn.ModuleList) and path.rpartition(".")[2] == "experts"
        is_inside = any(path.startswith(f"{outer}.") for outer in leaves)
        if (path in holders or is_list or isinstance(module, ParamWrapper)) and not is_inside:
            leaves[path] = module
    return list(leaves.values())


def targets_of(model: PreTrainedModel, method: Lora) -> Targets:
    """Return what the method's `target_modules` name in a mixture-of-experts model.

    all-linear: every linear layer except head and routers, and the experts. A name: every module, stacked parameter or
    router whose path ends with it.
    """
    candidates = dict(_candidates(model))
    if isinstance(method.target_modules, list):
        require_known(method.target_modules, [path.removesuffix(".weight") for path in candidates])
    without = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    without |= {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    modules, parameters = [], []
    for path, is_module in candidates.items():
        if not _is_named(path, method, without):
            continue
        if is_module and path.rpartition(".")[2] not in _OLD_NAMES:
            modules.append(path)
        else:
            parameters.append(f"{path}.weight" if is_module or _is_router(path) else path)
    if parameters:
        _require_plain(method)
    return Targets(
        _shortened(modules, [name for name, _ in model.named_modules()]),
        _shortened(parameters, parameter_names(model)),
    )


def _require_plain(method: Lora) -> None:
    """Raise InputError for options that peft does not have for stacked parameters."""
    for key, value in (("lora_dropout", method.lora_dropout), ("use_dora", method.use_dora)):
        if value:
            raise InputError(
                f"{key} is not available for adapters on experts and routers",
                where=f"method.{key}",
                remedy="remove it, or name the modules of the attention in method.target_modules",
            )


def _shortened(paths: list[str], names: list[str]) -> list[str]:
    """Return the shortest ends of the paths that match nothing else among the names."""
    chosen, ends = set(paths), {}
    for path in paths:
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            end = ".".join(parts[-length:])
            if end not in ends:
                ends[end] = all(name in chosen for name in names if f".{name}".endswith(f".{end}"))
            if ends[end]:
                break
    return sorted(end for end, matches_only_these in ends.items() if matches_only_these)


def _candidates(model: PreTrainedModel) -> Iterator[tuple[str, bool]]:
    """The paths of everything that can get an adapter, and whether it is a linear layer or an embedding."""
    yield from ((path, False) for path in expert_shapes(model))
    for path, module in model.named_modules():
        if isinstance(module, LINEAR):
            if is_adaptable(path):
                yield path, True
        elif _is_router(path) and _is_matrix(getattr(module, "weight", None)):
            yield path, False


def _is_named(path: str, method: Lora, without: set[str]) -> bool:
    """without: embeddings and the head, which all-linear does not include."""
    if isinstance(method.target_modules, str):
        return path not in without and not _is_router(path)
    plain = path.removesuffix(".weight")
    return any(f".{plain}".endswith(f".{target}") for target in method.target_modules)


def _is_router(path: str) -> bool:
    return ROUTER.search(path) is not None


def _is_matrix(weight: object) -> bool:
    return isinstance(weight, nn.Parameter) and len(getattr(weight, "ds_shape", weight.shape)) == 2
