"""One server per test file, with a tiny model whose chat template supports tools."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from running import serving


@pytest.fixture(scope="module")
def address(tool_llama, tmp_path_factory) -> Iterator[str]:
    cache = tmp_path_factory.getbasetemp() / "tunesmith-cache"
    with serving(tmp_path_factory.mktemp("served"), tool_llama, cache) as url:
        yield url
