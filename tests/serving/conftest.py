"""Shared databases and servers."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from api_process import Api, Postgres

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{% for call in message['tool_calls'] or [] %}{{ '<tool_call>' + (call['function'] | tojson) + '</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template of the tiny model, extended by tools and tool calls."""


@pytest.fixture(scope="session")
def tool_llama(tiny_llama, tmp_path_factory) -> Path:
    directory = Path(shutil.copytree(tiny_llama, tmp_path_factory.mktemp("tools") / "tiny"))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TOOL_TEMPLATE}))
    return directory


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def new_database(request, tmp_path_factory) -> Callable[[], str]:
    """new_database() -> the URL of an empty database; tests that use it run on both kinds."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").new_url
    return lambda: f"sqlite:///{tmp_path_factory.mktemp('store') / 'store.sqlite3'}"


@pytest.fixture(scope="module")
def api(new_database, tmp_path_factory, tiny_llama) -> Iterator[Api]:
    """A server without keys, shared by the tests of a module."""
    limits = {"max_file_bytes": 1 << 20, "max_part_bytes": 1 << 18, "max_body_bytes": 1 << 16, "request_timeout_s": 1.5}
    folder, bases = tmp_path_factory.mktemp("api"), {"tiny": str(tiny_llama), "org/tiny": str(tiny_llama)}
    server = Api(folder, database_url=new_database(), bases=bases, limits=limits).start()
    yield server
    server.stop()


@pytest.fixture
def start_api(tmp_path) -> Iterator[Callable[..., Api]]:
    """start_api(**settings) -> a new server on SQLite."""
    servers: list[Api] = []

    def start(**settings) -> Api:
        servers.append(Api(tmp_path / f"server{len(servers)}", **settings))
        return servers[-1].start()

    yield start
    for server in servers:
        server.stop()
