"""Tiny adapters for the tiny base model, with weights that change its output; servers in processes of their own."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from openai import OpenAI

from tests.selection import needs
from tests.warm_processes.pool import python_path

ROOT = Path(__file__).resolve().parents[3]


def make_adapter(base: Path, directory: Path, seed: int, **options) -> Path:
    """Save a peft adapter with random matrices, without a tokenizer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **options},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.data.normal_(0, 0.15)
    adapted.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def adapters(tiny_llama, tmp_path_factory) -> list[Path]:
    """Three adapters of tiny_llama with different ranks and target modules."""
    root = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(tiny_llama, root / "all", 1),
        make_adapter(tiny_llama, root / "attention", 2, r=8, target_modules=["q_proj", "v_proj"]),
        make_adapter(tiny_llama, root / "scaled", 3, r=2, use_rslora=True, target_modules=["down_proj", "o_proj"]),
    ]


@pytest.fixture
def copied(tmp_path):
    """copied(directory) -> a copy that the test may modify."""

    def copy(directory: Path) -> Path:
        return Path(shutil.copytree(directory, tmp_path / directory.name))

    return copy


class Served:
    """A running server: its URL, its process and the statistics of its engine."""

    def __init__(self, process: subprocess.Popen, port: int):
        self.process, self.port, self.base_url = process, port, f"http://127.0.0.1:{port}"

    def client(self, **options) -> OpenAI:
        return OpenAI(**{"base_url": f"{self.base_url}/v1", "api_key": "nobody", "max_retries": 0, **options})

    def get(self, path: str) -> dict:
        return httpx.get(f"{self.base_url}{path}", timeout=300).json()

    def wait_for(self, num_pending: int) -> None:
        """Wait until that many requests to the engine are pending."""
        deadline = time.monotonic() + 60
        while self.get("/test/pid")["pending"] != num_pending:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@contextmanager
def serving(
    models: dict[str, tuple[Path, Path | None]], variables: dict[str, str] | None = None, **config
) -> Iterator[Served]:
    """Run the API in a separate process. variables: environment variables. config: configuration of minimal_app.py."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = {name: [str(base), str(adapter) if adapter else None] for name, (base, adapter) in models.items()}
    home = tempfile.mkdtemp(prefix="tunesmith-server-")
    inherited = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = {**inherited, "MINIMAL_APP": json.dumps({"models": named, "home": home, **config})}
    environment |= {"PYTHONPATH": python_path(ROOT), **(variables or {})}
    command = [sys.executable, "-P", str(Path(__file__).parent / "minimal_app.py"), str(port)]
    process = subprocess.Popen(command, env=environment)
    served = Served(process, port)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{served.base_url}/test/pid", timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield served
    finally:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            shutil.rmtree(home)


@pytest.fixture(scope="session")
def models(tiny_llama, adapters) -> dict[str, tuple[Path, Path | None]]:
    return {"base": (tiny_llama, None)} | {f"ft-{path.name}": (tiny_llama, path) for path in adapters}


@pytest.fixture(scope="session")
@needs(group="served")
def served(models) -> Iterator[Served]:
    """A shared server, for tests that do not change its state."""
    with serving(models) as running:
        yield running


@pytest.fixture(scope="session")
def serve():
    """serve(models, variables, **config): context manager for a separate server."""
    return serving


class Paused(NamedTuple):
    """A server whose engine hangs before its fifth step until the file `go` exists."""

    served: Served
    go: Path

    def wait_until_paused(self) -> None:
        """Wait until the engine hangs. Before that, it could complete requests that the test expects to be pending."""
        deadline = time.monotonic() + 60
        while not Path(f"{self.go}.reached").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def release(self) -> None:
        self.go.touch()


@pytest.fixture
def paused(models, tmp_path) -> Iterator[Paused]:
    """A response in progress has at most four tokens when the engine hangs, however fast the machine is."""
    go = tmp_path / "go"
    variables = {"TUNESMITH_FAULT": "engine.step:5=hang", "TUNESMITH_FAULT_UNTIL": str(go)}
    with serving(models, variables) as running:
        yield Paused(running, go)
        go.touch()
