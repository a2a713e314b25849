"""Memory that runs out in a step: what counts, what is freed, and that the repeated step is equal."""

import json
import os
import weakref

import pytest
import torch

from tests.rank_processes import start_ranks, wait_for_ranks
from tests.training.engine.test_deepspeed import make_index, make_model
from tests.training.engine.test_plain import engine_for, loader_for
from tests.waiting import LIMIT_S
from tunesmith.data.index.loader import filler
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.rundir import faults
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.memory import MemoryRanOut, MemoryWatch, is_out_of_memory

ALONE = Ranks(0, 0, 1)


def refused() -> BaseException:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    return raised.value


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (refused(), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("NCCL error: out of memory"), False),
        (OSError(12, "Cannot allocate memory"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), False),
    ],
)
def test_only_refused_memory_counts(error, counts):
    assert is_out_of_memory(error) is counts


@pytest.fixture
def index(tmp_path) -> TokenIndex:
    make_index(tmp_path / "index")
    return TokenIndex.open(tmp_path / "index")


@pytest.mark.parametrize("phase", ["forward", "backward", "update"])
def test_step_in_which_memory_ran_out_leaves_weights_and_state_as_they_were(tiny_llama, index, monkeypatch, phase):
    """The second step, so that there are moments; the repeated one has the same bits, with passes of the same size."""
    loader, engine, undisturbed = loader_for(index, 4), engine_for(tiny_llama), engine_for(tiny_llama)
    for each in (engine, undisturbed):
        each.train_batch(loader.step_batch(1))
        each.optim_step(1e-2)
    monkeypatch.setattr(faults, "_fault_counts", {})
    monkeypatch.setenv("TUNESMITH_FAULT", f"memory.{phase}{':2' if phase != 'update' else ''}=oom")

    def second_step() -> None:
        engine.train_batch(loader.step_batch(2))
        engine.optim_step(1e-2)

    with pytest.raises(MemoryRanOut) as raised:
        second_step()
    shortage = raised.value.shortage
    monkeypatch.delenv("TUNESMITH_FAULT")
    passes = loader.step_batch(2).micro_batches
    expected = max(passes, key=lambda each: len(each.tokens)) if phase == "update" else passes[1]
    assert (shortage.rank, shortage.phase, shortage.agreed) == (0, phase, True)
    assert (shortage.num_tokens, shortage.num_documents) == (len(expected.tokens), len(expected.lengths))
    engine.drop_gradients()
    assert all(parameter.grad is None for parameter in engine.parameters.values())
    for step in (2, 3):
        sums = [each.train_batch(loader.step_batch(step)) for each in (engine, undisturbed)]
        assert sums[0] == sums[1]
        assert engine.optim_step(1e-2) == undisturbed.optim_step(1e-2)
    for first, second in zip(engine.optimizer_tensors(), undisturbed.optimizer_tensors(), strict=True):
        assert torch.equal(first[1], second[1]), first[0]


def test_tensors_of_the_failed_pass_are_freed_before_the_next():
    held: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        activation = torch.zeros(10)
        held.append(weakref.ref(activation))
        raise MemoryError

    with pytest.raises(MemoryRanOut) as raised:
        MemoryWatch(ALONE, together=True).run(work, filler([2]))
    assert [tensor() for tensor in held] == [None]  # while the error is still there: no frame of the pass is kept
    assert raised.value.__context__ is None


def test_other_errors_pass():
    def work() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        MemoryWatch(ALONE, together=True).run(work, filler([2]))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, warm_python) -> dict[str, dict]:
    """Results of two processes."""
    pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`")
    pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
    directory = tmp_path_factory.mktemp("memory")
    make_model(directory / "model")
    make_index(directory / "index")
    program, port = ["-m", "tests.training.engine.memory_ranks"], 27000 + os.getpid() % 2000
    wait_for_ranks(start_ranks(warm_python, program, directory, "memory", world_size=2, port=port), 2 * LIMIT_S)
    return json.loads((directory / "memory.json").read_text())


TOLERANCES = {"8bit": 1e-5, "bf16": 2e-3}
"""By rounding of the engine: 8-bit moments differ by a code where fp32 sums do by a unit in the last place, which
changes a weight by a fraction of the learning rate of 1e-4; bf16 activations differ by 2^-8 of themselves."""


@pytest.mark.slow
def test_step_is_repeated_on_both_ranks_if_memory_runs_out_on_one(ranks):
    disturbed = {name: result for name, result in ranks.items() if result["shortages"]}
    assert len(disturbed) >= 14
    for name, result in disturbed.items():
        engine, phase = name.rsplit("-", 1)
        expected = ranks[engine]
        tolerance = next((limit for key, limit in TOLERANCES.items() if key in engine), 1e-6)
        assert result["shortages"] == [[1, "backward" if phase == "within" else phase, True]], name
        assert result["losses"] == pytest.approx(expected["losses"], rel=0, abs=tolerance), name
        assert expected["losses"][0] - expected["losses"][-1] > 1e-3, name
        for parameter, weights in expected["weights"].items():
            difference = torch.tensor(result["weights"][parameter]) - torch.tensor(weights)
            assert float(difference.abs().max()) <= tolerance, (name, parameter)
