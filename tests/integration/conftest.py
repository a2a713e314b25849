"""Fixtures for complete runs through the installed command."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.waiting import LIMIT_S
from tests.warm_processes.pool import command_line
from tunesmith.rundir.paths import RunDir

COMMAND = Path(sys.executable).with_name("tunesmith")


@dataclass
class Project:
    """A user's directory with a recipe and its data."""

    directory: Path
    recipe: dict

    def write(self, name: str = "recipe.yaml", **sections) -> Path:
        """Write the recipe to a file; keyword sections replace or extend those of the base recipe."""
        recipe = json.loads(json.dumps(self.recipe))
        for section, values in sections.items():
            if isinstance(values, dict) and isinstance(recipe.get(section), dict) and section != "method":
                recipe[section].update(values)
            else:
                recipe[section] = values
        path = self.directory / name
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return path

    def run(self, *arguments: str | Path, timeout: float = LIMIT_S, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command_line([str(COMMAND)], *arguments),
            cwd=self.directory,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen:
        """Start the command in the background."""
        return subprocess.Popen(
            command_line([str(COMMAND)], *arguments),
            cwd=self.directory,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def train(self, recipe: Path, run: str, *arguments: str, **environment: str) -> RunDir:
        """Train and require success."""
        result = self.run("train", recipe, "--run-dir", run, *arguments, **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return RunDir(self.directory / run)


@pytest.fixture
def project(tmp_path, tiny_llama, chat_rows) -> Project:
    return make_project(tmp_path, tiny_llama, chat_rows)


@pytest.fixture(scope="session")
def alone(tmp_path_factory, tiny_llama, chat_rows, warm_pool) -> RunDir:
    """The project's run, trained by one process without interruption: the reference for other runs."""
    project = make_project(tmp_path_factory.mktemp("alone"), tiny_llama, chat_rows)
    return project.train(project.write(), "alone", **warm_pool.environment())


def make_project(directory: Path, tiny_llama: Path, chat_rows: list[dict]) -> Project:
    """Return a project with 60 chats, a tiny LLaMA, LoRA, packing and accumulation: about 12 steps, a few seconds."""
    data = directory / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in chat_rows))
    recipe = {
        "name": "tiny",
        "model": {"base": str(tiny_llama)},
        "task": "chat",
        "method": {"kind": "lora", "lora_rank": 4, "lora_alpha": 8},
        "data": {"train": ["chats.jsonl"], "validation": 0.2, "max_seq_len": 256, "packing": True},
        "optimization": {"learning_rate": 5e-3, "global_batch_size": 4, "micro_batch_size": 2, "epochs": 3},
        "checkpoint": {"every_steps": 2, "keep_last": 3},
        "evaluation": {"every_steps": 4, "num_answers": 1, "max_new_tokens": 8},
        "precision": "fp32",
        "seed": 7,
    }
    return Project(directory, recipe)
