"""Rows from URLs: fetched once, whole, and known by their address."""

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
    """A connection that ends in the middle of every file."""

    protocol = "torn"

    def get_file(self, rpath, lpath, *args, **kwargs):
        super().get_file(rpath, lpath, *args, **kwargs)
        with open(lpath, "rb+") as file:
            file.truncate(5)


@pytest.fixture
def memory():
    place = fsspec.filesystem("memory")
    yield place
    place.rm("/bucket", recursive=True)


def test_a_file_is_fetched_once_and_again_where_it_changed(tmp_path):
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
    """A directory, and the address under which a server on this machine gives out its files."""
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
def test_what_changed_on_a_web_server_is_fetched_again(served, tmp_path, changed):
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


def test_patterns_directories_and_other_file_systems(memory, tmp_path):
    memory.pipe({"/bucket/b.jsonl": b"b", "/bucket/sub/a.jsonl": b"a", "/bucket/readme.html": b"x"})

    def names(url: str) -> list[str]:
        return [path.name for path in fetch(url, (".jsonl",), tmp_path)]

    assert names("memory://bucket/*.jsonl") == ["b.jsonl"]
    assert names("memory://bucket/**/*.jsonl") == ["b.jsonl", "a.jsonl"]
    assert names("memory://bucket") == ["b.jsonl", "a.jsonl"]


def test_a_directory_behind_a_url_is_looked_at_like_one_here(memory, tmp_path):
    def fetched(**files: bytes) -> list[str]:
        memory.pipe({f"/bucket/{name}": content for name, content in files.items()})
        return [path.name for path in fetch("memory://bucket", (".jsonl", ".json", ".md", ".arrow"), tmp_path)]

    rows = {"rows.jsonl": b"x", "README.md": b"x", "dataset_info.json": b"x"}
    assert fetched(**rows) == ["rows.jsonl"]
    with pytest.raises(InputError, match="validation or test beside others"):
        fetched(**{"test.jsonl": b"x"})
    memory.rm("/bucket", recursive=True)
    assert fetched(**{"state.json": b"{}", "data-0.arrow": b"x", "rows.jsonl": b"x"}) == ["data-0.arrow"]
    with pytest.raises(InputError, match="several splits") as raised:
        fetched(**{"dataset_dict.json": b"{}", "train/data-0.arrow": b"x", "test/data-0.arrow": b"x"})
    assert "memory:///bucket/test, memory:///bucket/train" in str(raised.value)


def test_a_url_is_data_like_a_path_and_is_known_by_its_address(memory, tmp_path):
    memory.pipe({"/bucket/rows.jsonl": ROW.encode()})
    (tmp_path / "own.jsonl").write_text(ROW)
    paths = resolve(["own.jsonl", "memory://bucket/rows.jsonl"], tmp_path)
    assert [path.name for path in paths] == ["own.jsonl", "rows.jsonl"]
    assert paths[1].is_relative_to(cache_root())
    assert [address_of(path) for path in paths] == [None, "memory:///bucket/rows.jsonl"]
    sources = read_sources(["memory://bucket/rows.jsonl"], 0.0, tmp_path)
    assert [source.name for source in sources] == ["memory:///bucket/rows.jsonl"]


def test_what_came_only_in_part_is_refused_and_not_kept(tmp_path):
    fsspec.register_implementation("torn", Torn, clobber=True)
    (tmp_path / "a.jsonl").write_text(ROW)
    for _ in range(2):
        with pytest.raises(InputError, match=f"only 5 of {len(ROW)} bytes came"):
            fetch(f"torn://{tmp_path}/a.jsonl", (".jsonl",), tmp_path / "cache")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///nowhere/at/all.jsonl", "no data found"),
        ("memory://bucket-that-is-not-there/*.jsonl", "no data found"),
        ("nosuch://bucket/a.jsonl", "cannot be opened"),
    ],
)
def test_what_cannot_be_had_is_told_with_its_address(tmp_path, url, words):
    with pytest.raises(InputError, match=words) as raised:
        fetch(url, (".jsonl",), tmp_path)
    assert url in str(raised.value)


def test_paths_are_no_urls():
    assert all(map(is_url, ("s3://b/k", "file:///a", "simplecache::s3://b/k")))
    assert not any(map(is_url, ("a.jsonl", "/a/b", "C:/a", "~/x", "data/*.jsonl")))
