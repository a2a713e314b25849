"""Concurrent requests with several adapters, memory, crashes and disconnecting clients."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest


def chat(client, model: str, text: str, num_tokens: int = 24) -> str:
    response = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], max_completion_tokens=num_tokens, temperature=0
    )
    return response.choices[0].message.content


@pytest.mark.rerun(reason="it compares the seconds of concurrent and of sequential requests")
def test_32_concurrent_chats_with_three_adapters_are_equal_and_faster(served, models):
    client = served.client()
    tuned = [name for name in models if name != "base"]
    requests = [(tuned[number % 3], f"Question {number}: " + "why " * (number % 7)) for number in range(32)]
    for name in tuned:
        chat(client, name, "warm up")
    start = time.monotonic()
    sequential = [chat(client, *one) for one in requests]
    sequential_s = time.monotonic() - start
    with ThreadPoolExecutor(32) as pool:
        start = time.monotonic()
        concurrent = list(pool.map(lambda one: chat(client, *one), requests))
        concurrent_s = time.monotonic() - start
    assert concurrent == sequential
    assert len(set(sequential)) > 6
    assert concurrent_s < 0.8 * sequential_s, f"{concurrent_s:.2f} s concurrently, {sequential_s:.2f} s sequentially"


def test_adapters_share_the_base_weights(served, models):
    client = served.client()
    for name in models:
        chat(client, name, "hello", 2)
    facts = served.get("/test/facts")
    (base,) = facts["bases"].values()
    weights = models["base"][0] / "model.safetensors"
    assert base["weight_bytes"] <= weights.stat().st_size
    assert set(base["adapters"]) == {str(adapter) for _, adapter in models.values() if adapter}
    for directory, num_bytes in base["adapters"].items():
        assert 0 < num_bytes <= os.path.getsize(f"{directory}/adapter_model.safetensors")
    assert base["cache_bytes"] == 0  # no request is running


def test_the_api_process_does_not_import_torch(served):
    assert served.get("/test/pid")["torch"] is False


def long_stream(client):
    messages = [{"role": "user", "content": "long"}]
    return client.chat.completions.create(
        model="base", messages=messages, max_completion_tokens=1900, temperature=0, stream=True
    )


def test_threads_of_the_inference_process_do_not_spin_while_they_wait(served):
    """Spinning threads of a chat and of a training run on the same cores slow each other 5 to 20 times."""
    chat(served.client(), "base", "hello", 2)  # starts the process
    environment = Path(f"/proc/{served.get('/test/pid')['pid']}/environ").read_bytes().split(b"\0")
    assert b"OMP_WAIT_POLICY=PASSIVE" in environment
    assert any(re.fullmatch(rb"GOMP_SPINCOUNT=\d{1,4}", variable) for variable in environment)


def retrying_client(served):
    """A client that retries: a process that exited early is restarted after a delay."""
    return served.client(max_retries=10)


def test_a_disconnecting_client_frees_its_slot(paused):
    """The engine processes messages in order, so its statistics are exact: the request runs before the client
    disconnects, and not afterwards."""
    served = paused.served
    stream = long_stream(served.client())
    next(iter(stream))
    paused.wait_until_paused()
    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(served.get, "/test/facts")
        served.wait_for(num_pending=2)
        stream.close()
        served.wait_for(num_pending=1)
        after = pool.submit(served.get, "/test/facts")
        served.wait_for(num_pending=2)
        paused.release()
        assert (before.result()["served"], after.result()["served"]) == (1, 0)


def test_a_disconnecting_client_does_not_affect_the_others(served):
    """The remaining sequences move in the KV cache."""
    client = served.client()
    alone = chat(client, "base", "long", 1900)
    streams = [long_stream(client) for _ in range(3)]
    parts = [iter(stream) for stream in streams]
    for part in parts:
        assert next(part).choices[0].delta.role == "assistant"
        next(part)
    streams[0].close()
    for part in parts[1:]:
        assert alone.endswith("".join(chunk.choices[0].delta.content or "" for chunk in part))
    assert served.get("/test/facts")["served"] == 0


def test_a_killed_engine_returns_an_api_error_and_is_restarted(paused):
    served = paused.served
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(chat, served.client(), "base", "long", 1900)
        served.wait_for(num_pending=1)
        pid = served.get("/test/pid")["pid"]
        os.kill(pid, signal.SIGKILL)
        error = pending.exception(timeout=300)
    assert isinstance(error, openai.InternalServerError)
    assert error.status_code == 503
    assert error.body["code"] == "engine_unavailable"
    assert set(error.body) == {"message", "type", "param", "code"}
    paused.release()
    assert chat(retrying_client(served), "ft-all", "hello")
    assert served.get("/test/pid")["pid"] != pid


def test_an_engine_killed_during_a_stream_sends_an_error_event(paused):
    served = paused.served
    client = served.client()
    events = iter(long_stream(client))
    assert next(events).choices[0].delta.role == "assistant"
    os.kill(served.get("/test/pid")["pid"], signal.SIGKILL)
    with pytest.raises(openai.APIError) as raised:
        list(events)
    assert raised.value.code == "engine_unavailable"
    assert set(raised.value.body) == {"message", "type", "param", "code"}
    served.wait_for(num_pending=0)
    paused.release()
    assert chat(retrying_client(served), "ft-all", "hello")
