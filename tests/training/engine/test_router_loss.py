"""The router loss equals transformers' own on one large padded batch, over accumulation and ranks; ZeRO-3 equals plain
training of a mixture of experts, with experts in 4 bits, too."""

import json
import socket

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from tests.modeling.moe_models import make_moe
from tests.rank_processes import start_ranks, wait_for_ranks
from tests.training.engine.router_ranks import COEFFICIENT, GLOBAL_BATCH, loader_of
from tests.waiting import LIMIT_S
from tunesmith.data.index.token_index import TokenIndex, write_index

PROGRAM = ["-m", "tests.training.engine.router_ranks"]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, warm_python):
    """What one process and two measured, by world size, and their directory."""
    directory = tmp_path_factory.mktemp("router")
    make_moe("Mixtral").save_pretrained(directory / "model")
    random = np.random.default_rng(0)
    documents = []
    for row in range(17):
        length = int(random.integers(4, 40))
        supervised = random.random(length) < 0.6
        supervised[-1] = True
        documents.append((random.integers(3, 97, length).tolist(), supervised.tolist(), row))
    write_index(directory / "index", documents, max_seq_len=64)
    running = [
        *start_ranks(warm_python, PROGRAM, directory, "1", world_size=1, port=free_port()),
        *start_ranks(warm_python, PROGRAM, directory, "2", world_size=2, port=free_port()),
    ]
    wait_for_ranks(running, LIMIT_S)
    return directory, {size: json.loads((directory / f"{size}.json").read_text()) for size in (1, 2)}


@pytest.fixture(scope="module")
def expected(worlds):
    """transformers' router loss of the batch, padded, and the gradient of its whole loss."""
    directory, _ = worlds
    index = TokenIndex.open(directory / "index")
    batch = loader_of(directory, GLOBAL_BATCH).step_batch(1)
    rows = [index.document(row) for row in batch.rows]
    tokens = [torch.from_numpy(row.tokens.astype(np.int64)) for row in rows]
    labels = [torch.from_numpy(np.where(row.supervised, row.tokens.astype(np.int64), -100)) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True)
    assert not mask.all(), "the batch must have padding"
    model = AutoModelForCausalLM.from_pretrained(directory / "model")
    output = model(
        input_ids=pad_sequence(tokens, batch_first=True), attention_mask=mask, output_router_logits=True
    )  # fmt: skip
    targets = pad_sequence(labels, batch_first=True, padding_value=-100)[:, 1:]
    loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].transpose(1, 2), targets, reduction="sum")
    (loss / int((targets != -100).sum()) + COEFFICIENT * output.aux_loss).backward()
    return float(output.aux_loss.detach()), {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", ["global-1", "global-2", "global-4", "micro_batch-1"])
def test_the_loss_and_its_gradient_are_those_of_one_padded_batch(worlds, expected, world_size, case):
    directory, results = worlds
    loss, gradients = expected
    assert results[world_size][case][0] == pytest.approx(loss, abs=1e-5)
    for name, gradient in load_file(directory / f"{world_size}-{case}.safetensors").items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-3, atol=1e-5, msg=name)


def test_micro_batches_have_shares_of_their_own(worlds, expected):
    _, results = worlds
    for size in (1, 2):
        assert abs(results[size]["micro_batch-4"][0] - expected[0]) > 1e-4
        assert results[size]["micro_batch-4"][1:] == pytest.approx(results[size]["global-4"][1:], rel=1e-5)


def test_load_and_entropy_are_those_of_all_ranks(worlds):
    _, results = worlds
    _, load, entropy = results[1]["global-1"]
    assert results[2]["global-2"][1:] == pytest.approx([load, entropy], rel=1e-5)
    assert 1.0 < load <= 2.0  # at most 4 experts / 2 per token
    assert 0.0 < entropy < np.log(4)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_zero_3_equals_plain_training(worlds, method):
    _, results = worlds
    plain = results[2][f"plain-{method}"]
    assert results[2][f"zero-{method}"] == pytest.approx(plain, rel=1e-4)
    assert plain[3] != plain[0]


def test_experts_in_4_bits_are_trained_alike_on_one_rank_and_two(worlds):
    _, results = worlds
    one, two = results[1]["plain-qlora"], results[2]["plain-qlora"]
    assert two == pytest.approx(one, rel=1e-5)
    assert one[3] != one[0]
