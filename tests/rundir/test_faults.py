"""Faults that tests inject: at the call and on the rank that are named, and no others."""

import os
import signal

import pytest

from tunesmith.rundir import faults


def test_a_fault_is_injected_only_at_the_nth_call(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_FAULT", "test.stage:3=raise")
    monkeypatch.setattr(faults, "_fault_counts", {})
    faults.fault_point("test.stage")
    faults.fault_point("another.stage")
    faults.fault_point("test.stage")
    with pytest.raises(OSError, match="No space left"):
        faults.fault_point("test.stage")
    faults.fault_point("test.stage")


def test_memory_runs_out_once_for_a_file_and_only_on_the_named_rank(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_FAULT", "test.stage:2@1=oom")
    monkeypatch.setenv("TUNESMITH_FAULT_UNTIL", str(tmp_path))
    for rank, expected in (("0", False), ("1", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(faults, "_fault_counts", {})
        faults.fault_point("test.stage")
        if expected:
            with pytest.raises(MemoryError, match="injected"):
                faults.fault_point("test.stage")
        else:
            faults.fault_point("test.stage")


def test_a_sigterm_just_before_the_wait_for_it_counts(monkeypatch):
    monkeypatch.setattr(faults, "_fault_counts", {})
    monkeypatch.setattr(faults, "_terms", [])
    monkeypatch.setenv("TUNESMITH_FAULT", "stage:2=await_term")
    handled = []
    before = signal.signal(signal.SIGTERM, lambda *_: handled.append(1))
    try:
        faults.fault_point("stage")
        os.kill(os.getpid(), signal.SIGTERM)
        faults.fault_point("stage")  # it would block
    finally:
        signal.signal(signal.SIGTERM, before)
    assert handled == [1]
