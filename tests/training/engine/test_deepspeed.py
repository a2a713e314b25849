"""The DeepSpeed engine compared with the plain one: same losses, same gradients, one checkpoint format.

Three processes (world sizes of two and one) run everything in `zero_ranks.py` once; the tests read their results.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.rank_processes import start_ranks, wait_for_ranks
from tunesmith.data.index.token_index import write_index

SCRIPT = Path(__file__).parent / "zero_ranks.py"
WORLDS = {"two": 2, "one": 1}
FULL, QLORA = ("plain", "zero1", "zero2", "zero3"), ("plain", "zero2", "zero3")
SAVERS = [(world, "full", name) for world in WORLDS for name in FULL]
SAVERS += [(world, "qlora", name) for world in WORLDS for name in QLORA]


def make_model(directory: Path) -> None:
    """A tiny LLaMA with weights of odd sizes: no world size except one divides them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=40,
        intermediate_size=77,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        mlp_bias=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def make_index(directory: Path) -> None:
    """Seventeen documents of unequal length with unequal shares of supervised tokens."""
    random = np.random.default_rng(0)
    documents = []
    for row in range(17):
        length = int(random.integers(4, 60))
        supervised = random.random(length) < random.uniform(0.1, 0.9)
        supervised[-1] = True
        documents.append((random.integers(3, 384, length).tolist(), supervised.tolist(), row))
    write_index(directory, documents, max_seq_len=64)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, warm_python) -> dict[str, dict]:
    """Results of the ranks of both worlds, and their directory ("directory")."""
    pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`")
    pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
    directory = tmp_path_factory.mktemp("zero")
    make_model(directory / "model")
    make_index(directory / "index")
    processes = []
    for name, world_size in WORLDS.items():
        port = 29000 + os.getpid() % 2000 + world_size
        processes += start_ranks(warm_python, ["-P", str(SCRIPT)], directory, name, world_size=world_size, port=port)
    wait_for_ranks(processes, 560)
    results: dict = {name: json.loads((directory / f"{name}.json").read_text()) for name in WORLDS}
    return {**results, "directory": directory, "logs": [log.read_text() for _, log in processes]}


def difference(first: list[float], second: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("world", "family", "name"), SAVERS)
def test_losses_equal_the_plain_engine_on_one_process(runs, world, family, name):
    expected, actual = runs["one"][f"{family}-plain"], runs[world][f"{family}-{name}"]
    assert expected["losses"][-1] < expected["losses"][0] - (0.5 if family == "full" else 0.05)
    assert len(actual["losses"]) == 12
    assert difference(actual["losses"], expected["losses"]) < 1e-5
    assert actual["norm"] == pytest.approx(expected["norm"], rel=1e-5)


@pytest.mark.parametrize(("world", "family", "name"), SAVERS)
def test_gradients_equal_the_plain_engine_on_one_process(runs, world, family, name):
    """Of two ranks one has three samples in two micro-batches, the other two samples in one and a filler."""
    expected = load_file(runs["directory"] / f"one-{family}-plain-gradients.safetensors")
    actual = load_file(runs["directory"] / f"{world}-{family}-{name}-gradients.safetensors")
    assert actual.keys() == expected.keys()
    for parameter, gradient in expected.items():
        largest = float(gradient.abs().max())
        if "lora_A" not in parameter:  # with B at zero, A has no gradient yet
            assert largest > 1e-4, parameter
        assert float((actual[parameter] - gradient).abs().max()) <= 1e-5 * max(largest, 1e-2), parameter


@pytest.mark.parametrize(("world", "family", "name"), SAVERS)
def test_resuming_with_the_same_engine_is_bitwise_identical(runs, world, family, name):
    undisturbed, resumed = runs[world][f"{family}-{name}"], runs[world][f"resumed-{family}-{name}"]
    assert resumed["own"] == undisturbed["losses"][4:8]
    assert resumed["digest"] == undisturbed["digest"]


@pytest.mark.parametrize(("world", "family", "name"), SAVERS)
def test_every_engine_and_world_size_resumes_every_checkpoint(runs, world, family, name):
    undisturbed = runs[world][f"{family}-{name}"]["losses"]
    for loader_world in WORLDS:
        for loader in FULL if family == "full" else QLORA:
            losses = runs[loader_world][f"resumed-{family}-{loader}"]["others"][f"{world}-{family}-{name}"]
            assert difference(losses, undisturbed[4:6]) < 1e-5, (loader_world, loader)


@pytest.mark.parametrize("method", ["lora", "last_layers", "dora", "checkpointing", "kernels", "offload"])
def test_other_methods_and_offloading_give_the_losses_of_the_plain_engine(runs, method):
    two = runs["two"]
    expected = two["full-plain"]["losses"] if method == "offload" else two[f"{method}-zero0"]["losses"]
    stages = [key for key in two if key.startswith(f"{method}-zero") and not key.endswith("zero0")]
    assert stages
    for key in stages:
        assert difference(two[key]["losses"], expected[:6]) < 1e-5, key


def test_every_method_resumes_bitwise(runs):
    resumed = {key: value for key, value in runs["two"].items() if "resumed" in value}
    assert len(resumed) > 15
    for key, value in resumed.items():
        assert value["losses"][3:] == value["resumed"], key


def test_bf16_with_fp32_master_weights_stays_close_to_the_plain_engine(runs):
    """Weights are rounded once, in the plain engine for each product: close, not equal. Master weights keep small
    updates."""
    plain = runs["two"]["bf16-zero0"]["losses"]
    for stage in (1, 2, 3):
        assert 0 < difference(runs["two"][f"bf16-zero{stage}"]["losses"], plain) < 2e-2
    for stage in (2, 3):
        assert (
            difference(runs["two"][f"bf16-qlora-zero{stage}"]["losses"], runs["two"]["bf16-qlora-zero0"]["losses"])
            < 1e-2
        )


def test_8_bit_moments_stay_close_to_fp32(runs):
    plain = runs["two"]["full-plain"]["losses"][:6]
    for stage in (0, 1, 2, 3):
        assert 0 < difference(runs["two"][f"8bit-zero{stage}"]["losses"], plain) < 2e-2


@pytest.mark.parametrize("stage", [2, 3])
def test_a_sharded_model_scores_and_generates_like_a_whole_one(runs, stage):
    """Before the first step and between steps; training is unaffected."""
    expected, actual = runs["two"]["evaluated-zero0"], runs["two"][f"evaluated-zero{stage}"]
    assert np.allclose(actual["scores"], expected["scores"], atol=1e-3)
    assert actual["tokens"] == expected["tokens"]
    assert len(expected["tokens"][0]) == 6
    assert difference(actual["losses"], runs["two"]["lora-zero0"]["losses"][:3]) < 1e-5


@pytest.mark.parametrize("method", ["fp16", "fp16-lora"])
def test_fp16_scales_the_loss_alike_in_every_engine(runs, method):
    """The first step overflows: it is skipped on both ranks, the scale falls, and a resumed run continues with it."""
    two = runs["two"]
    keys = [f"{method}-zero{stage}" for stage in ((0, 1, 2, 3) if method == "fp16" else (0, 2, 3))]
    for key in keys:
        result = two[key]
        assert len({tuple(scales) for scales in result["scales"]}) == 1, key  # the ranks agree
        (scale, finite_steps, *resumed), *_ = result["scales"]
        assert [scale, finite_steps] == resumed
        assert (result["skipped"], scale, finite_steps) == (1, 2.0**10, 5)
        # fp16 rounds products by 2^-11, and its sums in another order.
        assert difference(result["losses"], two[keys[0]]["losses"]) < 2e-3, key


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_non_finite_gradient_on_one_rank_changes_no_rank(runs, stage, precision):
    result = runs["two"].get(f"not-finite-{precision}-zero{stage}")
    if result is None:
        assert (stage, precision) == (0, "bf16")
        return
    assert not result["finite"]
    assert not result["updated"]
    assert result["same"]
    if precision == "fp16":
        assert len(set(result["scales"])) == 1
        assert result["scales"][0] < 2.0**16
        return
    undisturbed = "full-plain" if precision == "fp32" else f"bf16-zero{stage}"
    assert difference(result["losses"], runs["two"][undisturbed]["losses"][2:4]) < 1e-5


def test_the_first_start_takes_seconds_and_compiles_nothing(runs):
    """CPU seconds from before the import of DeepSpeed to the end of the first step of the first engine."""
    for world in WORLDS:
        assert 0 < runs[world]["start"]["cpu_s"] < 20
        assert runs[world]["start"]["extensions"] == []


def test_the_logs_stay_quiet(runs):
    """The ranks print only the lines of the script itself."""
    for text in runs["logs"]:
        assert [line for line in text.splitlines() if line and not line.startswith("[")] == []


def test_4_bit_weights_are_sharded_over_the_ranks(runs):
    """Bytes of the base model's matrices on one rank: half of what a rank without ZeRO-3 holds, under 0.15 of fp32."""
    whole, sharded = runs["two"]["nf4-bytes"]["plain"], runs["two"]["nf4-bytes"]["zero3"]
    assert 0.48 < sharded["packed"] / whole["packed"] < 0.52
    assert whole["packed"] / whole["fp32"] < 0.14
    assert sharded["scales"] == whole["scales"]
    assert whole["scales"] < 0.1 * whole["packed"]


def test_no_rank_holds_the_whole_model_while_loading(runs):
    """Streaming into ZeRO-3: in addition to its shards a rank holds at most a few of the largest weights."""
    sizes = runs["two"]["sharded-load"]
    assert sizes["peak"] <= sizes["shards"] + 3 * sizes["largest_weight"]
    assert sizes["shards"] < 0.55 * sizes["whole"]
    assert math.isfinite(sizes["whole"])
