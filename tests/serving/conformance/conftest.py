"""A server for the tests of each file of this folder, over a tiny model whose template shows tools."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from running import TOOL_TEMPLATE, serving


@pytest.fixture(scope="session")
def tool_llama(tiny_llama, tmp_path_factory) -> Path:
    directory = Path(shutil.copytree(tiny_llama, tmp_path_factory.mktemp("tools") / "tiny"))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TOOL_TEMPLATE}))
    return directory


@pytest.fixture(scope="module")
def address(tool_llama, tmp_path_factory) -> Iterator[str]:
    cache = tmp_path_factory.getbasetemp() / "tunesmith-cache"
    with serving(tmp_path_factory.mktemp("served"), tool_llama, cache) as url:
        yield url
