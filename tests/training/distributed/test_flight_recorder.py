"""The collective that a rank is in, from PyTorch's flight recorder."""

import json
import os
import subprocess

import pytest

from tests.waiting import LIMIT_S
from tunesmith.training.distributed import flight_recorder
from tunesmith.training.distributed.flight_recorder import BUFFER, description, enable_flight_recorder, is_pending

RANK = """
import sys, threading, time
import torch, torch.distributed as dist
from tunesmith.training.distributed.flight_recorder import enable_flight_recorder, pending_collective
enable_flight_recorder()
store = dist.FileStore(sys.argv[1], 2)
rank = int(sys.argv[2])
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
dist.all_reduce(torch.ones(3))

def print_pending(number):
    # Once it is collective `number`, or none for 0: another thread of gloo records the end of a collective.
    until = time.monotonic() + 60
    while True:
        pending = pending_collective()
        if f" number {number} " in pending or (not number and not pending) or time.monotonic() > until:
            break
        time.sleep(0.05)
    print(repr(pending), flush=True)

if rank == 0:
    print_pending(0)
    blocked = threading.Thread(target=lambda: dist.all_reduce(torch.ones(5, 7)))
    blocked.start()
    print_pending(2)
    store.set("seen", "1")
    blocked.join()
    print_pending(0)
else:
    store.wait(["seen"])
    dist.all_reduce(torch.ones(5, 7))
"""


@pytest.mark.slow
def test_the_recorder_of_gloo_names_the_collective_that_waits(tmp_path, warm_python):
    call = [warm_python, "-c", RANK, str(tmp_path / "store")]
    ranks = [subprocess.Popen([*call, str(rank)], stdout=subprocess.PIPE, text=True) for rank in (0, 1)]
    try:
        output, _ = ranks[0].communicate(timeout=LIMIT_S)
    finally:
        for process in ranks:
            process.kill()
    assert output.splitlines() == ["''", "'gloo:all_reduce number 2 (Float [5, 7])'", "''"]


def entry(**changes):
    facts = {"profiling_name": "nccl:all_reduce", "collective_seq_id": 17, "p2p_seq_id": 0, "is_p2p": False}
    facts |= {"input_sizes": [[4096]], "input_dtypes": ["Float"], "state": "started", "retired": False}
    return {**facts, **changes}


def test_completed_and_retired_collectives_are_not_pending():
    assert is_pending(entry())
    assert is_pending(entry(state="scheduled"))
    assert not is_pending(entry(state="completed"))
    assert not is_pending(entry(state="scheduled", retired=True))  # gloo


def test_collectives_are_described_by_name_number_and_tensors():
    assert description(entry()) == "nccl:all_reduce number 17 (Float [4096])"
    assert description(entry(is_p2p=True, p2p_seq_id=3, profiling_name="nccl:send 0->1")).startswith(
        "nccl:send 0->1 number 3"
    )
    assert description({}) == "a collective number ?"


@pytest.mark.parametrize("dump", [lambda **_: b"not json", lambda **_: b"{}", None])
def test_a_recorder_that_cannot_be_read_names_nothing(monkeypatch, dump):
    import torch

    class Bindings:
        pass

    if dump is not None:
        Bindings._dump_nccl_trace_json = staticmethod(dump)  # type: ignore[attr-defined]
    monkeypatch.setattr(torch._C, "_distributed_c10d", Bindings)
    assert flight_recorder.pending_collective() == ""


def test_the_oldest_pending_collective_is_named(monkeypatch):
    """With the binding of earlier versions of torch."""
    import torch

    entries = [entry(state="completed"), entry(collective_seq_id=18), entry(collective_seq_id=19)]

    class Bindings:
        @staticmethod
        def _dump_nccl_trace_json(includeCollectives, onlyActive):
            return json.dumps({"entries": entries}).encode()

    monkeypatch.setattr(torch._C, "_distributed_c10d", Bindings)
    assert flight_recorder.pending_collective() == "nccl:all_reduce number 18 (Float [4096])"


def test_a_size_set_by_the_user_is_kept(monkeypatch):
    for name in BUFFER:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    enable_flight_recorder()
    assert os.environ[BUFFER[0]] == "2000"
    monkeypatch.delenv(BUFFER[0])
    monkeypatch.setenv(BUFFER[1], "0")
    enable_flight_recorder()
    assert BUFFER[0] not in os.environ
