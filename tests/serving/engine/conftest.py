"""Tiny adapters over the tiny base, with weights that really change answers."""

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

ROOT = Path(__file__).resolve().parents[3]


def make_adapter(base: Path, directory: Path, seed: int, **options) -> Path:
    """An adapter as peft saves it, its matrices drawn from the seed; its own files alone."""
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
    """Three adapters of unequal rank and reach over tiny_llama."""
    root = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(tiny_llama, root / "all", 1),
        make_adapter(tiny_llama, root / "attention", 2, r=8, target_modules=["q_proj", "v_proj"]),
        make_adapter(tiny_llama, root / "scaled", 3, r=2, use_rslora=True, target_modules=["down_proj", "o_proj"]),
    ]


@pytest.fixture
def copied(tmp_path):
    """copied(directory) -> a copy that may be changed."""

    def copy(directory: Path) -> Path:
        return Path(shutil.copytree(directory, tmp_path / directory.name))

    return copy


class Served:
    """A running server: its address, its process, and what its engine says of itself."""

    def __init__(self, process: subprocess.Popen, port: int):
        self.process, self.port, self.base_url = process, port, f"http://127.0.0.1:{port}"

    def client(self, **options) -> OpenAI:
        return OpenAI(**{"base_url": f"{self.base_url}/v1", "api_key": "nobody", "max_retries": 0, **options})

    def get(self, path: str) -> dict:
        return httpx.get(f"{self.base_url}{path}", timeout=60).json()

    def wait_for(self, asked: int) -> None:
        """Until so many messages to the engine are open."""
        until = time.monotonic() + 60
        while self.get("/test/pid")["asked"] != asked:
            assert time.monotonic() < until
            time.sleep(0.02)


@contextmanager
def serving(
    models: dict[str, tuple[Path, Path | None]], variables: dict[str, str] | None = None, **config
) -> Iterator[Served]:
    """The routes in a process of their own, as users have them. variables: of its environment. config: of
    minimal_app.py."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = {name: [str(base), str(adapter) if adapter else None] for name, (base, adapter) in models.items()}
    home = tempfile.mkdtemp(prefix="tunesmith-server-")
    environment = {**os.environ, "MINIMAL_APP": json.dumps({"models": named, "home": home, **config})}
    environment |= {"PYTHONPATH": str(ROOT), **(variables or {})}
    command = [sys.executable, "-P", str(Path(__file__).parent / "minimal_app.py"), str(port)]
    process = subprocess.Popen(command, env=environment)
    served = Served(process, port)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{served.base_url}/test/pid", timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
        yield served
    finally:
        process.terminate()
        try:
            process.wait(20)
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
    """One server for all tests that leave it as it was."""
    with serving(models) as running:
        yield running


@pytest.fixture(scope="session")
def serve():
    """serve(models, variables, **config): a server of a test's own, as a context."""
    return serving


class Held(NamedTuple):
    """A server whose engine stands still before its fifth step until the file `go` is there."""

    served: Served
    go: Path

    def wait_until_held(self) -> None:
        """Until the engine stands still. Before, it may answer at once what the test expects to stay open."""
        until = time.monotonic() + 60
        while not Path(f"{self.go}.reached").exists():
            assert time.monotonic() < until
            time.sleep(0.02)

    def let_go(self) -> None:
        self.go.touch()


@pytest.fixture
def held(models, tmp_path) -> Iterator[Held]:
    """Whatever is being answered when the engine stands still has four tokens at most, however fast the machine is."""
    go = tmp_path / "go"
    variables = {"TUNESMITH_FAULT": "engine.step:5=hang", "TUNESMITH_FAULT_UNTIL": str(go)}
    with serving(models, variables) as running:
        yield Held(running, go)
        go.touch()
