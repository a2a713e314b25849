"""Memory and time of QLoRA on experts, compared with LoRA on the same experts in 16 bits.

    python benchmarks/four_bit_experts.py

A Mixtral of random weights (2 layers, hidden size 256, 2 of 16 experts of width 512), adapters of rank 8 on attention
and experts, 512 tokens in bf16, one CPU thread. Weights: of the base model and of its experts. Kept: by the forward for
the backward pass, without weights. Time: CPU seconds of forward and backward, median.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from benchmarks.expert_adapters import saved_bytes
from tunesmith.configs.sections.method import Lora, QLora
from tunesmith.kernels.dispatch import Kernels
from tunesmith.modeling.adapters.method import apply_method
from tunesmith.modeling.adapters.targets import expert_shapes
from tunesmith.modeling.loading.stream import stream_model
from tunesmith.modeling.patching.replacements import use_kernels
from tunesmith.modeling.quantization.nf4_stack import stacks_of

NUM_TOKENS, REPEATS = 512, 5


def write_model(directory: Path) -> None:
    """Write the base model in bf16."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        num_local_experts=16,
        num_experts_per_tok=2,
        pad_token_id=0,
    )
    MixtralForCausalLM(config).bfloat16().save_pretrained(directory)


def loaded(directory: Path, method: Lora) -> Any:
    """The model with the method's adapters and the run's kernels, as a run loads it."""
    nf4 = isinstance(method, QLora)
    model = apply_method(stream_model(directory, dtype=torch.bfloat16, nf4=nf4), method).train()
    use_kernels(model, Kernels("auto"))
    return model


def weight_bytes(model: Any) -> tuple[int, int]:
    """Bytes of the frozen weights with their scales, and of the experts among them."""
    stacks = stacks_of(model).values()
    experts = sum(stack.num_bytes() for stack in stacks)
    if not experts:
        experts = sum(torch.Size(shape).numel() * 2 for shape in expert_shapes(model).values())
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    scales = [buffer for stack in stacks for buffer in stack.buffers()]
    states = [state for weight in frozen if (state := getattr(weight, "quant_state", None)) is not None]
    scales += [tensor for state in states for tensor in (state.absmax, state.state2.absmax)]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*frozen, *scales)), experts


def step(model: Any) -> float:
    """Forward and backward; returns CPU seconds."""
    tokens = torch.randint(3, 512, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(1))
    started = time.process_time()
    model(input_ids=tokens).logits.float().mean().backward()
    return time.process_time() - started


def main() -> None:
    """Print a table of both methods."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory))
        models = {
            "lora": loaded(Path(directory), Lora(kind="lora", lora_rank=8)),
            "qlora": loaded(Path(directory), QLora(kind="qlora", lora_rank=8)),
        }
    kept = {name: saved_bytes(model, step) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(REPEATS):
        for name, model in models.items():
            seconds[name].append(step(model))
    for name, model in models.items():
        weights, experts = weight_bytes(model)
        sizes = {"weights": weights, "experts": experts, "kept": kept[name]}
        columns = "".join(f"  {key} {size / 1e6:6.1f} MB" for key, size in sizes.items())
        print(f"{name:6}{columns}  {statistics.median(seconds[name]):.3f} s")


if __name__ == "__main__":
    main()
