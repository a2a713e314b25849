"""Memory and time of adapters on experts, compared with peft's own forward and with adapters on attention alone.

    python benchmarks/expert_adapters.py

A Mixtral of random weights (3 layers, hidden size 256, 2 of 8 experts), 1,024 tokens, one CPU thread. The adapters on
attention have the rank at which as many trained weights are active per token.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from transformers import MixtralConfig, MixtralForCausalLM

from tunesmith.configs.sections.method import Lora
from tunesmith.modeling.adapters.method import apply_method, trained_parameters

EXPERTS, PER_TOKEN, RANK, NUM_TOKENS, REPEATS = 8, 2, 8, 1024, 12
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def adapted(rank: int, targets: list[str] | str = "all-linear") -> Any:
    """The model with adapters of a rank."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        num_local_experts=EXPERTS,
        num_experts_per_tok=PER_TOKEN,
        pad_token_id=0,
    )
    method = Lora(kind="lora", lora_rank=rank, target_modules=targets)  # type: ignore[arg-type]
    return apply_method(MixtralForCausalLM(config), method).train()


def with_peft_forward(model: Any) -> Any:
    """The same model, with peft's forward of the experts."""
    for module in model.modules():
        if isinstance(module, ParamWrapper):
            module.__dict__.pop("forward", None)
    return model


def num_active(model: Any) -> float:
    """Trained weights that compute one token."""
    share = PER_TOKEN / EXPERTS
    return sum(
        weight.numel() * (share if ".experts." in name else 1.0) for name, weight in trained_parameters(model).items()
    )


def saved_bytes(model: Any, one_step: Callable[[Any], object] | None = None) -> int:
    """Bytes that the forward pass keeps for the backward pass, without the weights themselves."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        (one_step or step)(model)
    return sum(kept.values())


def step(model: Any) -> float:
    """Forward and backward; returns CPU seconds."""
    tokens = torch.randint(3, 512, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(1))
    started = time.process_time()
    model(input_ids=tokens).logits.mean().backward()
    return time.process_time() - started


def attention_alone() -> Any:
    """Adapters on attention with as many active trained weights."""
    rank = RANK * num_active(adapted(RANK)) / num_active(adapted(RANK, ATTENTION))
    return adapted(round(rank), ATTENTION)


def main() -> None:
    """Print a table of all three."""
    torch.set_num_threads(1)
    models = {"attention": attention_alone(), "experts": adapted(RANK), "peft": with_peft_forward(adapted(RANK))}
    memory = {name: saved_bytes(model) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(REPEATS):
        for name, model in models.items():
            seconds[name].append(step(model))
    for name in models:
        median = statistics.median(seconds[name])
        relative = memory[name] / memory["attention"], median / statistics.median(seconds["attention"])
        print(f"{name:10} {memory[name] / 1e6:6.1f} MB ({relative[0]:.2f})   {median:.3f} s ({relative[1]:.2f})")


if __name__ == "__main__":
    main()
