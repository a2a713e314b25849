"""Tiny adapters over the tiny base, with weights that really change answers."""

import shutil
from pathlib import Path

import pytest


def make_adapter(base: Path, directory: Path, seed: int, **options) -> Path:
    """An adapter as peft saves it, its matrices drawn from the seed; its own files alone."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **options},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.data.normal_(0, 0.15)
    adapted.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def adapters(tiny_llama, tmp_path_factory) -> list[Path]:
    """Three adapters of unequal rank and reach over tiny_llama."""
    root = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(tiny_llama, root / "all", 1),
        make_adapter(tiny_llama, root / "attention", 2, r=8, target_modules=["q_proj", "v_proj"]),
        make_adapter(tiny_llama, root / "scaled", 3, r=2, use_rslora=True, target_modules=["down_proj", "o_proj"]),
    ]


@pytest.fixture
def copied(tmp_path):
    """copied(directory) -> a copy that may be changed."""

    def copy(directory: Path) -> Path:
        return Path(shutil.copytree(directory, tmp_path / directory.name))

    return copy
