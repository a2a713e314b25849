"""Many requests at once over several adapters, memory, crashes, and clients that leave."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest


def ask(client, model: str, text: str, num_tokens: int = 24) -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], max_completion_tokens=num_tokens, temperature=0
    )
    return answer.choices[0].message.content


def test_32_chats_over_three_adapters_equal_one_by_one_and_are_faster(served, models):
    client = served.client()
    tuned = [name for name in models if name != "base"]
    asked = [(tuned[number % 3], f"Question {number}: " + "why " * (number % 7)) for number in range(32)]
    for name in tuned:
        ask(client, name, "warm up")
    start = time.monotonic()
    in_turn = [ask(client, *one) for one in asked]
    turn_s = time.monotonic() - start
    with ThreadPoolExecutor(32) as pool:
        start = time.monotonic()
        at_once = list(pool.map(lambda one: ask(client, *one), asked))
        once_s = time.monotonic() - start
    assert at_once == in_turn
    assert len(set(in_turn)) > 6
    assert once_s < 0.8 * turn_s, f"{once_s:.2f} s at once, {turn_s:.2f} s in turn"


def test_memory_grows_by_the_adapters_only(served, models):
    client = served.client()
    for name in models:
        ask(client, name, "hello", 2)
    facts = served.get("/test/facts")
    (base,) = facts["bases"].values()
    weights = models["base"][0] / "model.safetensors"
    assert base["weight_bytes"] <= weights.stat().st_size
    assert set(base["adapters"]) == {str(adapter) for _, adapter in models.values() if adapter}
    for directory, num_bytes in base["adapters"].items():
        assert 0 < num_bytes <= os.path.getsize(f"{directory}/adapter_model.safetensors")
    assert base["cache_bytes"] == 0  # nobody is being answered


def test_the_api_never_loads_torch(served):
    assert served.get("/test/pid")["torch"] is False


def long_stream(client):
    messages = [{"role": "user", "content": "long"}]
    return client.chat.completions.create(
        model="base", messages=messages, max_completion_tokens=1900, temperature=0, stream=True
    )


def patient(served):
    """A client that comes again as it is told to: a process that died young is not started again at once."""
    return served.client(max_retries=10)


def test_a_client_that_leaves_frees_its_place(held):
    """The engine reads its messages in the order in which they were sent, so what it says of itself is exact: asked
    before the client left, it was answering; asked afterwards, it was not."""
    served = held.served
    stream = long_stream(served.client())
    next(iter(stream))
    held.wait_until_held()
    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(served.get, "/test/facts")
        served.wait_for(asked=2)
        stream.close()
        served.wait_for(asked=1)
        after = pool.submit(served.get, "/test/facts")
        served.wait_for(asked=2)
        held.let_go()
        assert (before.result()["served"], after.result()["served"]) == (1, 0)


def test_one_that_leaves_does_not_disturb_the_others(served):
    """Those that stay move up in the cache."""
    client = served.client()
    alone = ask(client, "base", "long", 1900)
    streams = [long_stream(client) for _ in range(3)]
    parts = [iter(stream) for stream in streams]
    for part in parts:
        assert next(part).choices[0].delta.role == "assistant"
        next(part)
    streams[0].close()
    for part in parts[1:]:
        assert alone.endswith("".join(chunk.choices[0].delta.content or "" for chunk in part))
    assert served.get("/test/facts")["served"] == 0


def test_a_killed_engine_is_told_in_the_contracts_shape_and_comes_back(held):
    served = held.served
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, served.client(), "base", "long", 1900)
        served.wait_for(asked=1)
        pid = served.get("/test/pid")["pid"]
        os.kill(pid, signal.SIGKILL)
        error = waiting.exception(timeout=60)
    assert isinstance(error, openai.InternalServerError)
    assert error.status_code == 503
    assert error.body["code"] == "engine_unavailable"
    assert set(error.body) == {"message", "type", "param", "code"}
    held.let_go()
    assert ask(patient(served), "ft-all", "hello")
    assert served.get("/test/pid")["pid"] != pid


def test_an_engine_killed_in_mid_stream_is_told_in_the_stream(held):
    served = held.served
    client = served.client()
    events = iter(long_stream(client))
    assert next(events).choices[0].delta.role == "assistant"
    os.kill(served.get("/test/pid")["pid"], signal.SIGKILL)
    with pytest.raises(openai.APIError) as raised:
        list(events)
    assert raised.value.code == "engine_unavailable"
    assert set(raised.value.body) == {"message", "type", "param", "code"}
    served.wait_for(asked=0)
    held.let_go()
    assert ask(patient(served), "ft-all", "hello")
