"""Data files from URLs: downloaded once, verified, and identified by their address."""

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from tunesmith.data.cache import cache_root
from tunesmith.data.index.build import read_sources
from tunesmith.data.readers.sources import resolve
from tunesmith.data.readers.storage import address_of, fetch, is_url
from tunesmith.errors import InputError

ROW = '{"text": "one"}\n'


class Torn(LocalFileSystem):
    """A file system that truncates every download."""

    protocol = "torn"

    def get_file(self, rpath, lpath, *args, **kwargs):
        super().get_file(rpath, lpath, *args, **kwargs)
        with open(lpath, "rb+") as file:
            file.truncate(5)


@pytest.fixture
def memory():
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/bucket", recursive=True)


def test_a_file_is_downloaded_once_and_again_after_a_change(tmp_path):
    (tmp_path / "a.jsonl").write_text(ROW)
    url = f"file://{tmp_path}/a.jsonl"
    (first,) = fetch(url, (".jsonl",), tmp_path / "cache")
    assert first.read_text() == ROW
    written = first.stat().st_mtime_ns
    assert fetch(url, (".jsonl",), tmp_path / "cache") == [first]
    assert first.stat().st_mtime_ns == written
    (tmp_path / "a.jsonl").write_text(2 * ROW)
    (second,) = fetch(url, (".jsonl",), tmp_path / "cache")
    assert second.read_text() == 2 * ROW


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def served(tmp_path):
    """A directory, and the address of a local web server for its files."""
    directory = tmp_path / "served"
    directory.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield directory, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("changed", [2 * ROW, ROW.replace("one", "two")])
def test_a_file_that_changed_on_a_web_server_is_downloaded_again(served, tmp_path, changed):
    pytest.importorskip("aiohttp")
    directory, address = served
    rows = directory / "a.jsonl"
    rows.write_text(ROW)
    os.utime(rows, (1_000_000_000, 1_000_000_000))
    (first,) = fetch(f"{address}/a.jsonl", (".jsonl",), tmp_path / "cache")
    assert fetch(f"{address}/a.jsonl", (".jsonl",), tmp_path / "cache") == [first]
    rows.write_text(changed)
    os.utime(rows, (1_000_000_060, 1_000_000_060))
    (second,) = fetch(f"{address}/a.jsonl", (".jsonl",), tmp_path / "cache")
    assert (first.read_text(), second.read_text()) == (ROW, changed)
    assert address_of(second) == f"{address}/a.jsonl"


def test_patterns_and_directories_work_on_any_file_system(memory, tmp_path):
    memory.pipe({"/bucket/b.jsonl": b"b", "/bucket/sub/a.jsonl": b"a", "/bucket/readme.html": b"x"})

    def names(url: str) -> list[str]:
        return [path.name for path in fetch(url, (".jsonl",), tmp_path)]

    assert names("memory://bucket/*.jsonl") == ["b.jsonl"]
    assert names("memory://bucket/**/*.jsonl") == ["b.jsonl", "a.jsonl"]
    assert names("memory://bucket") == ["b.jsonl", "a.jsonl"]


def test_a_remote_directory_is_resolved_like_a_local_one(memory, tmp_path):
    def fetched(**files: bytes) -> list[str]:
        memory.pipe({f"/bucket/{name}": content for name, content in files.items()})
        return [path.name for path in fetch("memory://bucket", (".jsonl", ".json", ".md", ".arrow"), tmp_path)]

    rows = {"rows.jsonl": b"x", "README.md": b"x", "dataset_info.json": b"x"}
    assert fetched(**rows) == ["rows.jsonl"]
    with pytest.raises(InputError, match="mixes training files with validation or test files"):
        fetched(**{"test.jsonl": b"x"})
    memory.rm("/bucket", recursive=True)
    assert fetched(**{"state.json": b"{}", "data-0.arrow": b"x", "rows.jsonl": b"x"}) == ["data-0.arrow"]
    with pytest.raises(InputError, match="several splits") as raised:
        fetched(**{"dataset_dict.json": b"{}", "train/data-0.arrow": b"x", "test/data-0.arrow": b"x"})
    assert "memory:///bucket/test, memory:///bucket/train" in str(raised.value)


def test_a_url_is_resolved_like_a_path_and_identified_by_its_address(memory, tmp_path):
    memory.pipe({"/bucket/rows.jsonl": ROW.encode()})
    (tmp_path / "own.jsonl").write_text(ROW)
    paths = resolve(["own.jsonl", "memory://bucket/rows.jsonl"], tmp_path)
    assert [path.name for path in paths] == ["own.jsonl", "rows.jsonl"]
    assert paths[1].is_relative_to(cache_root())
    assert [address_of(path) for path in paths] == [None, "memory:///bucket/rows.jsonl"]
    sources = read_sources(["memory://bucket/rows.jsonl"], 0.0, tmp_path)
    assert [source.name for source in sources] == ["memory:///bucket/rows.jsonl"]


def test_an_incomplete_download_is_an_error_and_is_not_cached(tmp_path):
    fsspec.register_implementation("torn", Torn, clobber=True)
    (tmp_path / "a.jsonl").write_text(ROW)
    for _ in range(2):
        with pytest.raises(InputError, match=f"incomplete download: 5 of {len(ROW)} bytes"):
            fetch(f"torn://{tmp_path}/a.jsonl", (".jsonl",), tmp_path / "cache")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///nowhere/at/all.jsonl", "no data found"),
        ("memory://missing-bucket/*.jsonl", "no data found"),
        ("nosuch://bucket/a.jsonl", "cannot be opened"),
    ],
)
def test_an_unavailable_url_is_named_in_the_error(tmp_path, url, message):
    with pytest.raises(InputError, match=message) as raised:
        fetch(url, (".jsonl",), tmp_path)
    assert url in str(raised.value)


def test_paths_are_not_urls():
    assert all(map(is_url, ("s3://b/k", "file:///a", "simplecache::s3://b/k")))
    assert not any(map(is_url, ("a.jsonl", "/a/b", "C:/a", "~/x", "data/*.jsonl")))
