"""Counts what autograd saves for a block of a LLaMA, with the kernels that a GPU uses: run with TRITON_INTERPRET=1, it
prints bytes by case and shape as JSON. Not a test itself."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

TOKENS = 16
SHAPES = ((128, 128, 256), (128, 64, 384))
"""Hidden size, width of keys, feed-forward width."""
LORA, ADAPTERS = "method.kind=lora", {"kind": "lora", "lora_rank": 4}
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "lora": ({"method": ADAPTERS}, [LORA]),
    "qlora": ({"method": {**ADAPTERS, "kind": "qlora"}}, ["method.kind=qlora"]),
    "lora-zero3": ({"method": ADAPTERS, "sharded": True}, [LORA, "parallelism.zero_stage=3"]),
    "dora": ({"method": {**ADAPTERS, "use_dora": True}}, [LORA, "method.use_dora=true"]),
    "full": ({"method": {"kind": "full"}}, ["method.kind=full"]),
    "full-zero": ({"method": {"kind": "full"}, "masters": True}, ["method.kind=full", "parallelism.zero_stage=2"]),
    "full-zero-off": (
        {"method": {"kind": "full"}, "masters": True, "kernels": "off"},
        ["method.kind=full", "parallelism.zero_stage=2", "kernels=off"],
    ),
    "qwen3": ({"method": ADAPTERS, "family": "Qwen3"}, [LORA]),
}
"""How a model is built, and the recipe of the plan."""


def saved_bytes(case: dict[str, Any], shape: tuple[int, int, int], num_layers: int, num_tokens: int) -> int:
    """Bytes of the distinct tensors that autograd saves in a forward pass, without parameters."""
    import torch
    import transformers

    from tests.kernels.flash_on_cpu import flash_on_cpu
    from tunesmith.configs.recipe import Recipe
    from tunesmith.kernels import dispatch
    from tunesmith.kernels.dispatch import Kernels
    from tunesmith.modeling.adapters.method import apply_method
    from tunesmith.modeling.loading.base import load_base
    from tunesmith.modeling.losses.causal import CausalLoss
    from tunesmith.modeling.patching.replacements import use_kernels

    first, *others = dispatch.TABLE["packed_attention"]
    dispatch.TABLE["packed_attention"] = [replace(first, accepts=lambda query: query.dtype == torch.bfloat16), *others]
    hidden, keys, width = shape
    family, masters = case.get("family", "Llama"), case.get("masters", False)
    method = Recipe.model_validate(
        {"name": "x", "model": {"base": "x"}, "data": {"train": ["x"]}, "method": case["method"]}
    ).method
    with tempfile.TemporaryDirectory() as directory:
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(
            vocab_size=256,
            hidden_size=hidden,
            intermediate_size=width,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=keys // 32,
            head_dim=32,
            tie_word_embeddings=False,
        )
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(directory)
        frozen = method.kind != "full"
        dtype = torch.bfloat16 if masters or frozen else torch.float32
        model = load_base(Path(directory), method, dtype=dtype, device="cpu", place=None, task="chat", labels=None)
    model = apply_method(model, method, dropout=0.0, seed=0, in_fp32=not masters, start_from=None)
    kernels = Kernels(case.get("kernels", "auto"))
    use_kernels(model, kernels, sharded=case.get("sharded", False))
    loss = CausalLoss(model, kernels=kernels, compute_dtype=None if masters else torch.bfloat16)
    loss.train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, Any] = {}  # kept alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    tokens = torch.arange(num_tokens) + 3
    lengths = [num_tokens // 2, num_tokens - num_tokens // 2]
    positions = torch.cat([torch.arange(length) for length in lengths])
    with flash_on_cpu(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sums = loss(tokens, tokens, positions, lengths)
    assert sums.loss_sum.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


def shapes_of(name: str) -> tuple[tuple[int, int, int], ...]:
    """Both shapes for the first case; the others differ from it in few operations."""
    return SHAPES if name == "lora" else SHAPES[1:]


def of_a_block(case: dict[str, Any], shape: tuple[int, int, int]) -> int:
    """Bytes of one more block for TOKENS more tokens, which leaves out casts of its weights."""
    few, many = (
        saved_bytes(case, shape, 2, tokens) - saved_bytes(case, shape, 1, tokens) for tokens in (TOKENS, 2 * TOKENS)
    )
    return many - few


if __name__ == "__main__":
    print(
        json.dumps({name: [of_a_block(case, shape) for shape in shapes_of(name)] for name, (case, _) in CASES.items()})
    )
