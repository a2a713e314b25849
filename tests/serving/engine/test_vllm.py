"""--engine vllm with a stand-in for vLLM; its responses are compared with the embedded engine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.serving.engine.conftest import ROOT, Served, make_adapter, serving
from tests.warm_processes.pool import python_path
from tunesmith.errors import InputError
from tunesmith.inference import rendering
from tunesmith.serving.engines import build_engine
from tunesmith.serving.settings import Settings, load_settings

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> str:
    """The stand-in as a command. Its arguments are appended to a file next to it."""
    path = tmp_path_factory.mktemp("bin") / "vllm"
    path.write_text(f'#!/bin/sh\necho "$@" >> {path}.started\nexec {sys.executable} {stand_in()} "$@"\n')
    path.chmod(0o755)
    return str(path)


def stand_in() -> Path:
    return Path(__file__).with_name("vllm_stand_in.py")


@pytest.fixture(scope="module")
def named(models, tiny_llama, tmp_path_factory) -> dict[str, tuple[Path, Path | None]]:
    root = tmp_path_factory.mktemp("dora")
    dora = make_adapter(tiny_llama, root / "dora", 4, use_dora=True)
    return {**models, "dora": (tiny_llama, dora)}


@pytest.fixture(scope="module")
def vllm(named, command) -> Iterator[Served]:
    with serving(named, vllm={"command": [command], "max_adapters": 2}) as running:
        yield running


def facts(vllm: Served) -> dict:
    """State of the stand-in."""
    (url,) = vllm.get("/test/pid")["urls"].values()
    return httpx.get(f"{url}/test/facts", timeout=300).json()


def content_of(response) -> dict:
    """A response without its id and time."""
    return response.model_dump(exclude={"id", "created"})


def approximately(value):
    """Approximate floats, whose last digits depend on the batch."""
    if isinstance(value, dict):
        return {key: approximately(one) for key, one in value.items()}
    if isinstance(value, list):
        return [approximately(one) for one in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_chat_completions_are_equal_with_both_engines(vllm, served):
    """With the base and adapters, complete and streamed: text, finish reason, usage, log-probabilities."""
    cases = [
        {"temperature": 0},
        {"temperature": 1.1, "seed": 3, "n": 2, "top_p": 0.9},
        {"temperature": 0, "logprobs": True, "top_logprobs": 2, "logit_bias": {"7": -100}},
        {"temperature": 1.3, "seed": 5, "response_format": {"type": "json_object"}},
        {"temperature": 0, "presence_penalty": 1, "stop": ["e", "the"], "logprobs": True},
    ]
    for model in ("base", "ft-all", "ft-scaled"):
        for case in cases:
            request = {"model": model, "messages": MESSAGES, "max_completion_tokens": 16, **case}
            embedded, external = (one.client().chat.completions.create(**request) for one in (served, vllm))
            assert content_of(embedded) == approximately(content_of(external)), (model, case)
            chunks = list(vllm.client().chat.completions.create(**request, stream=True))
            for choice in embedded.choices:
                parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
                assert "".join(part.delta.content or "" for part in parts) == choice.message.content
                assert parts[-1].finish_reason == choice.finish_reason


def test_completions_are_equal_with_both_engines(vllm, served):
    for case in ({"echo": True, "logprobs": 2, "max_tokens": 0}, {"max_tokens": 5, "logprobs": 1}, {"stop": "e"}):
        request = {"model": "ft-all", "prompt": [[70, 80, 90], [60, 61]], "temperature": 0, **case}
        embedded, external = (one.client().completions.create(**request) for one in (served, vllm))
        assert content_of(embedded) == approximately(content_of(external)), case


def test_the_vllm_process_is_started_with_a_secret_key(vllm, command, tiny_llama):
    vllm.client().chat.completions.create(model="base", messages=MESSAGES, max_completion_tokens=1)
    started = Path(f"{command}.started").read_text().splitlines()[0].split()
    assert started[:2] == ["serve", str(tiny_llama)]
    assert "127.0.0.1" in started
    assert "--enable-lora" in started
    assert "key" not in " ".join(started)  # process arguments are visible to all users
    (url,) = vllm.get("/test/pid")["urls"].values()
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert vllm.get("/test/pid")["torch"] is False


def test_adapters_are_unloaded_by_last_use_and_on_request(vllm, models):
    client = vllm.client()
    for name in ("ft-all", "ft-attention", "ft-scaled"):
        client.chat.completions.create(model=name, messages=MESSAGES, max_completion_tokens=1)
    assert set(facts(vllm)["adapters"].values()) == {str(models[name][1]) for name in ("ft-attention", "ft-scaled")}
    httpx.post(f"{vllm.base_url}/test/unload", params={"adapter": str(models["ft-scaled"][1])}).raise_for_status()
    assert set(facts(vllm)["adapters"].values()) == {str(models["ft-attention"][1])}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"model": "dora"}, None, "DoRA"),
        ({"max_tokens": 5000}, "context_length_exceeded", "2048 tokens"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
            None,
            "not",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_vllm_errors_are_returned_as_api_errors(vllm, options, code, message, stream):
    with pytest.raises(openai.BadRequestError) as raised:
        vllm.client().chat.completions.create(**{"model": "base", "messages": MESSAGES, "stream": stream, **options})
    assert raised.value.code == code
    assert set(raised.value.body) == {"message", "type", "param", "code"}
    assert message in raised.value.message


def test_disconnect_crash_and_restart(named, command, tmp_path):
    """The engine of the stand-in hangs at its fifth step, so that requests stay pending."""
    go = tmp_path / "go"
    variables = {"TUNESMITH_FAULT": "engine.step:5=hang", "TUNESMITH_FAULT_UNTIL": str(go)}
    with serving(named, variables, vllm={"command": [command]}) as running:
        # One letter again and again: a response that begins with incomplete characters has no text within four tokens.
        always_a = {str(rendering.tokenizer_of(named["base"][0]).encode("a")[0]): 100}
        request = {"model": "ft-all", "messages": MESSAGES, "max_completion_tokens": 1500, "logit_bias": always_a}
        stream = iter(running.client().chat.completions.create(**request, stream=True))
        next(stream)
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            body = json.dumps(request).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            wait_until(lambda: facts(running)["pending"] == 2)
        wait_until(lambda: facts(running)["pending"] == 1)
        first = facts(running)["pid"]
        os.kill(first, signal.SIGKILL)
        with pytest.raises(openai.APIError) as raised:
            list(stream)
        assert raised.value.code == "engine_unavailable"
        go.touch()
        client = running.client(max_retries=10)
        response = client.chat.completions.create(model="ft-all", messages=MESSAGES, max_completion_tokens=2)
        assert response.usage.completion_tokens <= 2
        second = facts(running)["pid"]
        assert second != first
        running.process.kill()  # only the API: vLLM must not keep running with the GPU memory
        running.process.wait()
        wait_until(lambda: not Path(f"/proc/{second}").exists())


@pytest.mark.cold  # SIGSTOP does not reach a process of the warm pool
def test_a_vllm_that_stops_responding_is_restarted(models, command):
    with serving(models, vllm={"command": [command], "hang_s": 8}) as running:
        client = running.client(max_retries=10)

        def answer() -> str | None:
            response = client.chat.completions.create(
                model="ft-all", messages=MESSAGES, max_completion_tokens=8, temperature=0
            )
            return response.choices[0].message.content

        expected, first = answer(), facts(running)["pid"]
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(openai.InternalServerError) as raised:
            running.client().chat.completions.create(model="base", messages=MESSAGES)
        assert (raised.value.status_code, raised.value.code) == (503, "engine_unavailable")
        assert answer() == expected
        assert not Path(f"/proc/{first}").exists()


def test_a_failed_start_returns_503_without_waiting(named, command):
    with serving(named, vllm={"command": [command], "arguments": ["--fail-at-start"]}) as running:
        for _ in range(2):
            with pytest.raises(openai.InternalServerError) as raised:
                running.client().chat.completions.create(model="base", messages=MESSAGES)
            assert (raised.value.status_code, raised.value.code) == (503, "engine_unavailable")


def test_an_external_server_is_used(named, tiny_llama, free_port):
    key = {"VLLM_API_KEY": "sesame", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    arguments = ["serve", str(tiny_llama), "--served-model-name", "llama", "--host", "127.0.0.1", "--enable-lora"]
    arguments += ["--generation-config", "vllm", "--structured-outputs-config", "{}", "--port", str(free_port)]
    for name in ("--max-lora-rank", "--max-loras", "--max-cpu-loras", "--max-num-seqs"):
        arguments += [name, "16"]
    environment = {**os.environ, **key, "PYTHONPATH": python_path(ROOT)}
    server = subprocess.Popen([sys.executable, str(stand_in()), *arguments], env=environment)
    url = f"http://127.0.0.1:{free_port}"
    try:
        wait_until(lambda: _answers(url))
        with serving(named, key, vllm={"command": ["nowhere"], "url": url}) as running:
            responses = [
                running.client().chat.completions.create(model=name, messages=MESSAGES, max_completion_tokens=4)
                for name in ("base", "ft-all")
            ]
            assert all(response.choices for response in responses)
            assert len(facts(running)["adapters"]) == 1
        assert server.poll() is None  # an external server is not stopped
        wrong = {**key, "VLLM_API_KEY": "wrong"}
        with (
            serving(named, wrong, vllm={"command": ["nowhere"], "url": url}) as running,
            pytest.raises(openai.InternalServerError, match="VLLM_API_KEY"),
        ):
            running.client().chat.completions.create(model="base", messages=MESSAGES)
    finally:
        server.terminate()
        server.wait(300)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_missing_vllm_command_is_reported_with_a_remedy(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = Settings(engine="vllm", bases={"tiny": tiny_llama})
    with pytest.raises(InputError, match="the command vllm was not found") as raised:
        build_engine(settings)
    assert "pip install vllm" in str(raised.value)
    assert build_engine(settings.model_copy(update={"engine_url": {"tiny": "http://127.0.0.1:1/v1"}}))
    config = tmp_path / "server.yaml"
    config.write_text(json.dumps({"bases": {"tiny": str(tiny_llama)}, "engine_url": {"small": "http://x"}}))
    with pytest.raises(InputError, match="'small'"):
        load_settings(config)
