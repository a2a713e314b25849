"""The gradient contract: accumulation, ranks and packing all give the loss and gradient of one large batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.rank_processes import outputs_of_ranks
from tests.waiting import LIMIT_S
from tunesmith.configs.sections.method import Full, Lora
from tunesmith.configs.sections.optimization import Optimization
from tunesmith.data.index.loader import Loader
from tunesmith.data.index.token_index import TokenIndex, write_index
from tunesmith.kernels.compute_copy import compute_copy
from tunesmith.kernels.dispatch import Kernels
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.patching.replacements import use_kernels
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.plain import PlainEngine

METHODS = {"full": Full(kind="full"), "lora": Lora(kind="lora", lora_rank=4)}
ALONE = Ranks(0, 0, 1)
OPTIMIZATION = Optimization(learning_rate=1e-2, weight_decay=0.01)


@pytest.fixture
def index(tmp_path) -> TokenIndex:
    """Seventeen documents of unequal length with unequal shares of supervised tokens."""
    random = np.random.default_rng(0)
    documents = []
    for row in range(17):
        length = int(random.integers(4, 60))
        supervised = random.random(length) < random.uniform(0.1, 0.9)
        supervised[-1] = True
        documents.append((random.integers(3, 384, length).tolist(), supervised.tolist(), row))
    return write_index(tmp_path / "index", documents, max_seq_len=64)


def engine_for(model_dir: Path, method: str = "full", ranks: Ranks = ALONE) -> PlainEngine:
    model = load_model(model_dir, dtype=torch.float32, attention="tunesmith_packed")
    model = apply_method(model, METHODS[method], seed=3)
    if method == "lora":  # B is initialized to zero, which would leave A without a gradient
        torch.manual_seed(0)
        for name, parameter in trained_parameters(model).items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return PlainEngine(CausalLoss(model), trained_parameters(model), OPTIMIZATION, ranks, device="cpu")


def train(engine: PlainEngine, loader: Loader, steps: int) -> list[float]:
    losses = []
    for step in range(1, steps + 1):
        sums = engine.train_batch(loader.step_batch(step))
        losses.append(sums.loss_sum / sums.supervised_tokens)
        engine.optim_step(1e-2)
    return losses


def loader_for(index: TokenIndex, micro_batch_size: int, rank: int = 0, world_size: int = 1) -> Loader:
    return Loader(
        index,
        seed=5,
        epochs=4,
        global_batch_size=8,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world_size,
    )


@pytest.mark.parametrize("method", ["full", "lora"])
def test_accumulation_gives_the_losses_of_one_large_batch(tiny_llama, index, method):
    expected = train(engine_for(tiny_llama, method), loader_for(index, 8), 8)
    assert expected[-1] < expected[0] - 0.2
    for micro_batch_size in (4, 2, 1):
        losses = train(engine_for(tiny_llama, method), loader_for(index, micro_batch_size), 8)
        assert losses == pytest.approx(expected, abs=1e-5)


def test_loss_and_gradient_equal_transformers_row_by_row(tiny_llama, index):
    from transformers import AutoModelForCausalLM

    engine = engine_for(tiny_llama)
    batch = loader_for(index, 3).step_batch(1)
    sums = engine.train_batch(batch)

    plain = AutoModelForCausalLM.from_pretrained(tiny_llama)
    total = 0.0
    for row in batch.rows:
        document = index.document(row)
        tokens = torch.from_numpy(document.tokens.astype(np.int64))[None]
        logits = plain(tokens).logits[0, :-1]
        keep = torch.from_numpy(document.supervised)[1:]
        loss = torch.nn.functional.cross_entropy(logits[keep], tokens[0, 1:][keep], reduction="sum")
        (loss / batch.global_supervised_tokens).backward()
        total += loss.item()
    assert sums.loss_sum == pytest.approx(total, rel=1e-5)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(engine.parameters[name].grad, parameter.grad, atol=1e-6), name


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_in_bf16_resumes_bit_identically(tiny_llama, index, method):
    """The fp32 masters are saved, and the bf16 copies follow from them."""

    def engine() -> PlainEngine:
        model = load_model(tiny_llama, dtype=torch.float32 if method == "full" else torch.bfloat16)
        model = apply_method(model, METHODS[method], seed=3)
        kernels = Kernels()
        assert use_kernels(model, kernels)
        loss = CausalLoss(model, kernels=kernels, compute_dtype=torch.bfloat16)
        return PlainEngine(loss, trained_parameters(model), OPTIMIZATION, ALONE, device="cpu", kernels=kernels)

    def run(engine: PlainEngine, steps: range) -> list[float]:
        losses = []
        for step in steps:
            losses.append(engine.train_batch(loader.step_batch(step)).loss_sum)
            engine.optim_step(1e-2)
        return losses

    loader, whole, resumed = loader_for(index, 4), engine(), engine()
    whole_losses = run(whole, range(1, 3))
    run(resumed, range(5, 6))  # its weights and copies are of another step before it is loaded
    model, optimizer = ({n: t.clone() for n, t in f()} for f in (whole.model_tensors, whole.optimizer_tensors))
    resumed.load(model, optimizer, 2)
    assert run(resumed, range(3, 6)) == run(whole, range(3, 6))
    for (name, value), (_, other) in zip(whole.model_tensors(), resumed.model_tensors(), strict=True):
        assert torch.equal(value, other), name
        assert value.dtype == torch.float32
    assert whole_losses[0] > 0


def test_a_non_finite_gradient_changes_nothing(tiny_llama, index):
    engine = engine_for(tiny_llama)
    loader = loader_for(index, 4)
    train(engine, loader, 1)
    before = {name: tensor.clone() for name, tensor in [*engine.model_tensors(), *engine.optimizer_tensors()]}
    engine.train_batch(loader.step_batch(2))
    next(iter(engine.parameters.values())).grad[0, 0] = float("nan")
    norm, updated = engine.optim_step(1e-2)
    assert not updated
    assert norm != norm
    after = dict([*engine.model_tensors(), *engine.optimizer_tensors()])
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


RANK = """
import json, os, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[3])
from test_plain import engine_for, loader_for, train
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.training.distributed.ranks import join_ranks, leave_ranks
torch.set_num_threads(1)
ranks = join_ranks("cpu")
engine = engine_for(Path(sys.argv[1]), "full", ranks)
loader = loader_for(TokenIndex.open(Path(sys.argv[2])), 2, ranks.rank, ranks.world_size)
batch = loader.step_batch(3)  # the last batch of the epochs' stream is short: shares are unequal
engine.train_batch(batch)
gradients = {name: p.grad.double().sum().item() for name, p in engine.parameters.items()}
engine.optimizer.zero_grad()
losses = train(engine, loader, 9)
if ranks.is_first:
    print(json.dumps({"losses": losses, "gradients": gradients}))
leave_ranks()
"""


def test_three_ranks_with_unequal_shares_give_the_gradient_of_one_rank(tiny_llama, index, free_port, warm_python):
    """17 samples, batches of 8 over 3 ranks: shares of 3, 3 and 2 samples, the last batch 4 samples over 3 ranks."""
    engine = engine_for(tiny_llama)
    engine.train_batch(loader_for(index, 8).step_batch(3))
    gradients = {name: p.grad.double().sum().item() for name, p in engine.parameters.items()}
    engine.optimizer.zero_grad()
    expected = train(engine, loader_for(index, 8), 9)

    program = ["-c", RANK, str(tiny_llama), str(index.directory), str(Path(__file__).parent)]
    outputs = outputs_of_ranks(warm_python, program, world_size=3, port=free_port, timeout_s=LIMIT_S)
    result = json.loads(outputs[0].splitlines()[-1])
    assert result["losses"] == pytest.approx(expected, abs=1e-5)
    assert result["gradients"] == pytest.approx(gradients, abs=1e-5)


@pytest.mark.parametrize(("optimizer", "kernels"), [("adamw", None), ("adamw", Kernels()), ("adamw_8bit", None)])
def test_copies_of_weights_are_those_after_the_last_update(tiny_llama, index, optimizer, kernels):
    """Whatever the optimizer counts as a change of a tensor."""
    model = apply_method(load_model(tiny_llama, dtype=torch.float32, attention="tunesmith_packed"), Full(kind="full"))
    optimization = OPTIMIZATION.model_copy(update={"optimizer": optimizer})
    loss = CausalLoss(model, compute_dtype=torch.bfloat16)
    engine = PlainEngine(loss, trained_parameters(model), optimization, ALONE, device="cpu", kernels=kernels)
    saved = {name: tensor.clone() for name, tensor in engine.model_tensors()}
    loader = loader_for(index, 4)

    def assert_current() -> None:
        for name, weight in engine.parameters.items():
            assert torch.equal(compute_copy(weight, torch.bfloat16), weight.detach().bfloat16()), name

    for number in (1, 2):
        engine.train_batch(loader.step_batch(number))
        assert_current()
        engine.optim_step(1e-2)
        assert_current()
    assert any(not torch.equal(saved[name], tensor) for name, tensor in engine.model_tensors())
    engine.load(saved, None, 0)
    assert_current()
