"""A copy of a base model that a test may change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def copy(tiny_llama, tmp_path) -> Path:
    return shutil.copytree(tiny_llama, tmp_path / "model")


@pytest.fixture
def change_config() -> Callable[..., None]:
    """`change_config(directory, key=value, ...)`: replace keys of its config.json."""

    def change(directory: Path, **changes: Any) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change
