"""Fifty training steps of SmolLM2 with and without kernels: the same losses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tunesmith.configs.sections.method import Full, Lora, Method
from tunesmith.configs.sections.optimization import Optimization
from tunesmith.data.index.loader import Loader
from tunesmith.data.index.token_index import write_index
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.kernels.dispatch import Kernels
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.patching.fast import install_kernels
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.plain import PlainEngine

ROOT = Path(__file__).resolve().parents[2]


def train(directory, index, method: Method, selection) -> list[float]:
    model = load_model(directory, dtype=torch.float32, attention="tunesmith_packed")
    model = apply_method(model, method, seed=3)
    kernels = Kernels(selection)
    compared = install_kernels(model, kernels, device="cpu", compute_dtype=None)
    assert compared
    assert all(parity.holds for parity in compared)
    loss_module = CausalLoss(model, kernels=kernels)
    engine = PlainEngine(loss_module, trained_parameters(model), Optimization(), Ranks(0, 0, 1), device="cpu")
    passes = 1 if method.kind == "lora" else 2  # full: two passes, to test accumulation
    loader = Loader(
        index, seed=0, epochs=2, global_batch_size=passes, micro_batch_size=1, rank=0, world_size=1, max_steps=50
    )
    losses = []
    for step in range(1, 51):
        sums = engine.train_batch(loader.step_batch(step))
        engine.optim_step(2e-4 if method.kind == "lora" else 2e-5)
        losses.append(sums.loss_sum / sums.supervised_tokens)
    return losses


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(Lora(kind="lora", lora_rank=16), id="lora"),
        pytest.param(Full(kind="full"), id="full", marks=pytest.mark.soak),
    ],
)
def test_fifty_steps_give_the_same_losses(smollm2, tmp_path, method):
    tokens = Tokenizer.load(smollm2).encode((ROOT / "LICENSE").read_text(encoding="utf-8"))
    random = np.random.default_rng(0)
    ends = np.cumsum(random.integers(12, 25, 50))
    rows = [tokens[end - 12 : end] for end in ends]
    documents = [(row, [False, *[True] * (len(row) - 1)], number) for number, row in enumerate(rows)]
    index = write_index(tmp_path / "index", documents, max_seq_len=16)
    off = train(smollm2, index, method, "off")
    assert train(smollm2, index, method, "auto") == pytest.approx(off, abs=1e-4)
    assert np.mean(off[-10:]) < np.mean(off[:10])
