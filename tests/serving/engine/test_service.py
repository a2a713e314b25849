"""Many requests at once over several adapters, memory, crashes, and clients that leave."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import openai


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


def test_a_client_that_leaves_frees_its_place(served):
    client = served.client()
    stream = client.chat.completions.create(
        model="base", messages=[{"role": "user", "content": "long"}], max_completion_tokens=1900, stream=True
    )
    next(iter(stream))
    assert served.get("/test/facts")["served"] == 1
    stream.close()
    until = time.monotonic() + 10
    while served.get("/test/facts")["served"]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_killed_engine_is_told_in_the_contracts_shape_and_comes_back(served):
    client = served.client()
    before = ask(client, "ft-all", "hello")
    pid = served.get("/test/facts")["pid"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, client, "base", "long", 1900)
        until = time.monotonic() + 10
        while not served.get("/test/facts")["served"]:
            assert time.monotonic() < until
        os.kill(pid, signal.SIGKILL)
        error = waiting.exception(timeout=30)
    assert isinstance(error, openai.InternalServerError)
    assert error.status_code == 503
    assert error.body["code"] == "engine_unavailable"
    assert set(error.body) == {"message", "type", "param", "code"}
    assert ask(client, "ft-all", "hello") == before
    assert served.get("/test/facts")["pid"] != pid
