"""A chat next to a training run on the same cores.

    python benchmarks/chat.py [--rounds 3] [--steps 5] [--tokens 64] [--model models/smollm2-135m]

`tunesmith serve` answers the same greedy chat request in a loop, and `tunesmith train` trains LoRA on one row of up to
512 tokens per step. Each round measures the chat on the idle machine, starts the run, measures `steps` steps without a
chat and then at least as many steps with one. Rates: completion tokens per second of a request, and trained tokens per
second of the steps. Both processes choose their own threads: OMP_* and GOMP_* variables are removed from their
environment.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import machine
import rows

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 1800.0
QUESTION = "Explain in detail how a bicycle works, part by part."


def environment(work: Path) -> dict[str, str]:
    """The environment of both processes: the user's, without settings of threads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, "TUNESMITH_CACHE": str(work / "cache")}


def until(condition: Callable[[], Any], process: subprocess.Popen, log: Path) -> Any:
    """Wait for a result that is not false, and return it; exit with the log if the process ends before."""
    deadline = time.monotonic() + LIMIT_S
    while not (result := condition()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"exit code {process.poll()}:\n{log.read_text('utf-8')[-3000:]}")
        time.sleep(0.05)
    return result


@contextmanager
def started(command: list[str], work: Path, log: Path) -> Iterator[subprocess.Popen]:
    """A process that is stopped at the end of the block."""
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tunesmith.cli.main", *command],
            env=environment(work),
            stdout=file,
            stderr=file,
            cwd=work,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT_S)


@contextmanager
def server(model: Path, work: Path) -> Iterator[httpx.Client]:
    """A client of `tunesmith serve` for the model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"home": str(work / "home"), "port": port, "bases": {"base": str(model)}}
    (work / "server.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    log = work / "server.log"
    with (
        started(["serve", "--config", str(work / "server.yaml")], work, log) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client,
    ):
        until(lambda: is_up(client), process, log)
        yield client


def is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def chat(client: httpx.Client, num_tokens: int) -> tuple[int, float]:
    """One greedy request. Returns its completion tokens and its seconds."""
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_completion_tokens": num_tokens,
        "temperature": 0,
    }
    begun = time.perf_counter()
    response = client.post("/v1/chat/completions", json=body, headers={"Authorization": "Bearer benchmark"})
    if response.status_code != 200:
        raise SystemExit(response.text)
    return response.json()["usage"]["completion_tokens"], time.perf_counter() - begun


def write_recipe(work: Path, model: Path) -> Path:
    rows.write_many_rows(work / "rows.jsonl", 400)
    recipe = {
        "name": "chat",
        "model": {"base": str(model)},
        "task": "chat",
        "method": {"kind": "lora"},
        "data": {"train": [str(work / "rows.jsonl")], "validation": 0.0, "max_seq_len": 512}
        | {"too_long": "truncate", "max_rejects": 400},
        "optimization": {"global_batch_size": 1, "epochs": 100},
        "checkpoint": {"every_steps": 100_000},
        "evaluation": {"num_answers": 0},
        "precision": "fp32",
    }
    path = work / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The steps so far, except the first one, which warms up."""
    try:
        lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in events if event["kind"] == "step" and event["step"] > 1]


def between(steps: list[dict[str, Any]], begin: float, end: float) -> list[dict[str, Any]]:
    """The steps that lie completely between two times."""
    return [step for step in steps if step["time"] - step["step_s"] >= begin and step["time"] <= end]


def rate(steps: list[dict[str, Any]]) -> float:
    """Trained tokens per second."""
    return sum(step["num_tokens"] for step in steps) / sum(step["step_s"] for step in steps)


def measure(client: httpx.Client, recipe: Path, work: Path, number: int, num_steps: int, num_tokens: int) -> dict:
    """One round: rates of the chat and of training, each alone and together."""
    idle = [chat(client, num_tokens) for _ in range(3)]
    run, log = work / f"run-{number}", work / "train.log"
    with started(["train", str(recipe), "--run-dir", str(run)], work, log) as process:
        alone = until(lambda: len(steps := steps_of(run)) >= num_steps and steps, process, log)
        begun, together = time.time(), [chat(client, num_tokens)]
        while len(between(steps_of(run), begun, time.time())) < num_steps:
            together.append(chat(client, num_tokens))
        shared = between(steps_of(run), begun, time.time())
    return {
        "chat_idle": sum(tokens for tokens, _ in idle) / sum(seconds for _, seconds in idle),
        "chat_shared": sum(tokens for tokens, _ in together) / sum(seconds for _, seconds in together),
        "training_alone": rate(alone),
        "training_shared": rate(shared),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m")
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    arguments = parser.parse_args()
    before = machine.machine()["load_average"]
    with tempfile.TemporaryDirectory() as folder, server(arguments.model.resolve(), Path(folder)) as client:
        work = Path(folder)
        recipe = write_recipe(work, arguments.model.resolve())
        chat(client, arguments.tokens)  # loads the model
        sizes = arguments.steps, arguments.tokens
        rounds = [measure(client, recipe, work, number, *sizes) for number in range(arguments.rounds)]
    results = {
        "command": ["python", "benchmarks/chat.py", *sys.argv[1:]],
        "load_before": before,
        "tokens_per_s": {name: machine.spread([each[name] for each in rounds]) for name in rounds[0]},
        "chat_of_idle": machine.spread([each["chat_shared"] / each["chat_idle"] for each in rounds]),
        "training_of_alone": machine.spread([each["training_shared"] / each["training_alone"] for each in rounds]),
    }
    table = [["quantity", "median", "low", "high"]]
    ratios = {name: results[name] for name in ("chat_of_idle", "training_of_alone")}
    tokens = {f"{name}, tokens/s": value for name, value in results["tokens_per_s"].items()}
    for name, value in {**ratios, **tokens}.items():
        table.append([name, *(f"{value[key]:.3f}" for key in ("median", "low", "high"))])
    machine.write("chat", results, table, arguments.results)


if __name__ == "__main__":
    main()
