"""An inference process that stops responding is restarted; a slow or idle one is not."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch

from tests.serving.engine.conftest import Served
from tests.waiting import wait_for
from tunesmith.serving.engine.heartbeat import SLOWDOWN, START_S, Heartbeat, Progress, Pulse
from tunesmith.serving.engine.protocol import EngineOptions
from tunesmith.serving.engine.service import Service

HANG_S = 8.0
"""Tests run on busy machines."""
ENVELOPE = {"message", "type", "param", "code"}


def beat(count: int, stage: str = "working") -> dict:
    return {"stage": stage, "count": count, "stack": "step a.py:1"}


def faults(pulse: Pulse, beats: list[dict | None]) -> list[str | None]:
    """The faults after each second. None: a second without a heartbeat."""
    reasons = []
    for heard in beats:
        if heard is not None:
            pulse.hear(heard)
        reasons.append(pulse.fault(1.0))
    return reasons


@pytest.mark.parametrize(
    "beats",
    [
        [beat(number) for number in range(100)],
        [beat(0, "idle")] * 100,
        [beat(number // 10) for number in range(100)],  # no progress for just the limit
        [beat(0), None, None, None] * 20 + [beat(1)],
    ],
)
def test_slow_and_idle_processes_do_not_hang(beats):
    assert not any(faults(Pulse(10.0), beats[:10] if beats[1] is None else beats))


def test_a_process_that_sends_nothing_hangs():
    assert faults(Pulse(10.0), [beat(0)] + [None] * 11)[-2:] == ["sent nothing for 11 s", "sent nothing for 12 s"]


def test_a_process_without_progress_hangs_and_the_place_is_named():
    fault = faults(Pulse(10.0), [beat(5)] * 11)[-1]
    assert fault == "made no progress for 11 s (working; step a.py:1)"


def test_the_limit_follows_the_longest_time_without_progress():
    slow = [beat(number // 5) for number in range(50)]
    assert not any(faults(Pulse(6.0), slow + [beat(10)] * int(SLOWDOWN * 4)))
    assert faults(Pulse(6.0), slow + [beat(10)] * int(SLOWDOWN * 6))[-1]


def test_starting_has_a_limit_of_its_own():
    seconds = int(START_S)
    assert [bool(fault) for fault in faults(Pulse(10.0), [None] * (seconds + 1))] == [False] * seconds + [True]
    pulse = Pulse(10.0)
    assert not any(faults(pulse, [None] * 100))
    assert faults(pulse, [beat(1)] * 11)[-1]  # it does not extend the later limit


def test_the_first_heartbeat_is_sent_before_any_answer():
    """A process that stops within a second of its first answer has left the starting stage and its long limit."""
    beats: list[dict] = []
    Heartbeat(Progress(), beats.append).start()
    assert [first["stage"] for first in beats[:1]] == ["working"]
    assert faults(Pulse(10.0), [*beats[:1], *[None] * 11])[-1]


def test_every_layer_of_a_step_is_progress(tiny_llama):
    """A step over a long prompt may take minutes; its layers do not."""
    progress = Progress()
    service = Service(EngineOptions(), torch.device("cpu"), lambda _: None, progress)
    service.handle({"kind": "read", "id": 1, "target": {"base": str(tiny_llama), "adapter": ""}, "prompt": [5] * 100,
                    "top": 0, "caller": ""})  # fmt: skip
    service.admit()
    (base,) = service.bases.values()
    before = progress.count
    service.step(base)
    assert progress.count - before >= base.runner.num_layers == 2


def test_cpu_time_is_progress_only_while_weights_are_loaded():
    progress, beats = Progress(), []
    heartbeat = Heartbeat(progress, beats.append)

    def counted() -> int:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        return heartbeat.beat()["count"]

    assert counted() == counted()
    with progress.during("loading"):
        assert counted() < counted()


def chat(served: Served, model: str, num_tokens: int = 4, **options):
    messages = [{"role": "user", "content": "hello"}]
    client = served.client(max_retries=options.pop("max_retries", 0))
    return client.chat.completions.create(
        model=model, messages=messages, max_completion_tokens=num_tokens, temperature=0, **options
    )


@pytest.fixture(scope="module")
def watched(serve, models):
    with serve(models, options={"hang_s": HANG_S}) as running:
        yield running


@pytest.mark.cold  # SIGSTOP does not reach a process of the warm pool
def test_a_stopped_process_is_restarted_with_its_adapters(watched):
    expected = chat(watched, "ft-all").choices[0].message.content
    pid = watched.get("/test/pid")["pid"]
    stream = iter(chat(watched, "ft-all", 1900, stream=True))
    assert next(stream).choices[0].delta.role == "assistant"
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(chat, watched, "base")
        with pytest.raises(openai.APIError, match="stopped responding") as raised:
            list(stream)
        assert (raised.value.code, set(raised.value.body)) == ("engine_unavailable", ENVELOPE)
        error = pending.exception()
    assert isinstance(error, openai.InternalServerError)
    assert (error.status_code, error.code, set(error.body)) == (503, "engine_unavailable", ENVELOPE)
    assert error.response.headers["retry-after"]
    assert chat(watched, "ft-all", max_retries=10).choices[0].message.content == expected
    assert watched.get("/test/pid")["pid"] != pid
    assert not Path(f"/proc/{pid}").exists()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.cold  # SIGSTOP does not reach a process of the warm pool
def test_a_slow_process_is_not_restarted(watched):
    """It is stopped again and again, for longer than the limit altogether."""
    stream = iter(chat(watched, "base", 1900, stream=True))
    next(stream)
    pid = watched.get("/test/pid")["pid"]
    for _ in range(4):
        os.kill(pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        wait_for(lambda since=stopped_at: time.monotonic() - since > HANG_S / 3)
        before = cpu_seconds(pid)
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda before=before: cpu_seconds(pid) - before > 0.1)  # long enough to send the heartbeat that is due
        next(stream)
    assert list(stream)[-1].choices[0].finish_reason
    assert watched.get("/test/pid")["pid"] == pid


def test_a_process_that_hangs_in_a_step_is_restarted(serve, models, tmp_path):
    """Its heartbeats continue, but without progress."""
    go = tmp_path / "go"
    variables = {"TUNESMITH_FAULT": "engine.step:5=hang", "TUNESMITH_FAULT_UNTIL": str(go)}
    with serve(models, variables, options={"hang_s": HANG_S}) as running:
        with pytest.raises(openai.InternalServerError, match="stopped responding"):
            chat(running, "base", 100)
        go.touch()
        assert chat(running, "ft-all", 100, max_retries=10)
