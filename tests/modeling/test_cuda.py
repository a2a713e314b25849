"""The device of a process: selected before anything else touches CUDA."""

import os

import pytest
import torch

from tunesmith.errors import InputError
from tunesmith.modeling import cuda
from tunesmith.modeling.cuda import device_index


@pytest.mark.parametrize(("local_rank", "num_devices", "index"), [(0, 8, 0), (7, 8, 7), (0, 1, 0), (3, 1, 0)], ids=str)
def test_a_process_uses_the_device_of_its_local_rank_or_the_only_one(local_rank, num_devices, index):
    assert device_index(local_rank, num_devices) == index


@pytest.mark.parametrize(("local_rank", "num_devices"), [(2, 2), (0, 0)])
def test_a_process_without_a_device_is_an_error(monkeypatch, local_rank, num_devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a2b,GPU-3c4d")
    with pytest.raises(InputError, match=f"LOCAL_RANK={local_rank} has no GPU: it sees {num_devices}") as raised:
        device_index(local_rank, num_devices)
    assert "GPU-1a2b,GPU-3c4d" in str(raised.value.where)


@pytest.fixture
def calls(monkeypatch):
    """CUDA calls in their order; the device is a stand-in."""
    calls: list[str] = []
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: calls.append(f"set_device {index}"))
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: calls.append("initialized"))
    backends = torch.backends.cuda
    monkeypatch.setattr(backends, "enable_cudnn_sdp", lambda enabled: calls.append(f"cudnn attention {enabled}"))
    monkeypatch.setattr(
        type(backends.matmul), "__setattr__", lambda matmul, name, value: calls.append(f"{name} {value}")
    )
    return calls


def test_nothing_initializes_cuda_before_the_device_is_selected(calls):
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        cuda.set_up_cuda(3)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert calls[-1] == "set_device 3"
    assert "initialized" not in calls
    assert "cudnn attention False" in calls
    assert "allow_fp16_reduced_precision_reduction False" in calls
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_worker_selects_its_device_before_it_joins_the_others(monkeypatch):
    """The first collective, and with it NCCL's communicator, must be on the device of the rank."""
    from types import SimpleNamespace

    from tunesmith.training import worker

    order: list[str] = []
    plan = SimpleNamespace(
        compute=SimpleNamespace(device="cuda", deterministic="off", threads_per_rank=1, gradient_checkpointing=True),
        recipe=SimpleNamespace(stage_timeout_s=60.0),
    )
    rendezvous = SimpleNamespace(
        store=None,
        address="127.0.0.1",
        set_waiting_for=lambda text: None,
        allow=lambda seconds: order.append(f"allow {seconds:g}"),
        complete=lambda: order.append("complete"),
    )
    ranks = SimpleNamespace(is_first=False, world_size=2, broadcast=lambda value: value)
    run = SimpleNamespace(exists=True, plan=None, run_id="r")
    monkeypatch.setattr(worker, "own_rank", lambda: ranks)
    monkeypatch.setattr(worker, "check_ranks", lambda *arguments: rendezvous)
    monkeypatch.setattr(worker, "read_plan", lambda path: plan)
    monkeypatch.setattr(worker, "set_up_cuda", lambda local_rank: order.append(f"device {local_rank}"))
    monkeypatch.setattr(worker, "join_ranks", lambda *arguments, **options: order.append("join") or ranks)
    monkeypatch.setattr(worker, "replace", lambda run, run_id: run)
    monkeypatch.setenv("LOCAL_RANK", "1")
    worker.start(run, 1)  # type: ignore[arg-type]
    assert order == ["device 1", "allow 180", "join", "complete"]
