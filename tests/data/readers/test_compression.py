"""A compressed file has the rows, line numbers and shards of the file in it."""

import bz2
import gzip
import json
import lzma
import subprocess
from pathlib import Path

import pyarrow
import pytest

from tunesmith.configs.recipe import Recipe
from tunesmith.data.check import check_files
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.prepare import prepare
from tunesmith.data.index.shard import shard_id
from tunesmith.data.readers import compression, lines
from tunesmith.data.readers.sources import cut, read, resolve
from tunesmith.errors import InputError

CONTENT = {
    "jsonl": b'{"text": "one"}\n\n{"text": "two"}\n{broken\n' + b'{"text": "three"}\n' * 50,
    "json": b'[\n{"text": "one"},\n{"text": "two"}\n]\n',
    "csv": b"text;id\none;1\ntwo;2\n",
    "txt": b"one\r\ntwo\n",
}


def zstd(data: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read_all(path):
    return [(line.number, getattr(line.value, "reason", line.value)) for shard in cut(path) for line in read(shard)]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", CONTENT)
@pytest.mark.parametrize("members", [1, 3])
def test_compressed_equals_plain(tmp_path, monkeypatch, tiny, suffix, kind, members):
    monkeypatch.setattr(lines, "SHARD_BYTES", 200)
    content, compress = CONTENT[kind], COMPRESS[suffix]
    plain, packed = tmp_path / f"rows.{kind}", tmp_path / f"rows.{kind}.{suffix}"
    plain.write_bytes(content)
    size = -(-len(content) // members)
    packed.write_bytes(b"".join(compress(content[start : start + size]) for start in range(0, len(content), size)))
    assert read_all(packed) == read_all(plain)
    encoder = make_encoder(tiny, EncodingSpec("text", 64))
    assert [shard_id(shard, encoder) for shard in cut(packed)] == [shard_id(shard, encoder) for shard in cut(plain)]
    if kind == "jsonl":
        assert len(list(cut(packed))) > 2


def test_the_commands_of_the_system_write_files_that_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    for command in ("gzip", "bzip2", "xz"):
        path.write_bytes(CONTENT["jsonl"])
        expected = read_all(path)
        try:
            subprocess.run([command, str(path)], check=True)
        except FileNotFoundError:
            continue
        (packed,) = tmp_path.glob("rows.jsonl.*")
        assert read_all(packed) == expected
        packed.unlink()


def test_compressed_files_are_found_in_directories_and_named_in_receipts(tmp_path, tiny, chat_rows):
    rows = "".join(json.dumps(row) + "\n" for row in chat_rows).encode()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "part.jsonl.gz").write_bytes(gzip.compress(rows))
    (folder / "notes.gz").write_bytes(gzip.compress(b"x"))
    assert resolve(["data"], tmp_path) == [folder / "part.jsonl.gz"]
    (folder / "test.jsonl.zst").write_bytes(zstd(rows))
    with pytest.raises(InputError, match=r"test\.jsonl\.zst"):
        resolve(["data"], tmp_path)
    (folder / "part.jsonl.gz").write_bytes(gzip.compress(rows + b"{\n"))
    summary = check_files(["data/part.jsonl.gz"], recipe_dir=tmp_path)
    assert (summary.rows, summary.files) == (61, ["data/part.jsonl.gz"])
    assert (summary.rejects[0].source, summary.rejects[0].line) == ("data/part.jsonl.gz", 61)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_damaged_files_are_named(tmp_path, suffix):
    path = tmp_path / f"rows.jsonl.{suffix}"
    whole = COMPRESS[suffix](CONTENT["jsonl"] * 100)
    for content in (whole[: len(whole) // 2], b'{"text": "plain"}\n'):
        path.write_bytes(content)
        with pytest.raises(InputError, match="compressed file cannot be read") as caught:
            read_all(path)
        assert caught.value.where == str(path)
        assert f'remove ".{suffix}"' in str(caught.value.remedy)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_file_that_is_huge_when_decompressed_is_rejected(tmp_path, monkeypatch, cache, suffix):
    monkeypatch.setattr(compression, "FREE_BYTES", 4 << 20)
    path = tmp_path / f"rows.jsonl.{suffix}"
    path.write_bytes(COMPRESS[suffix](b'{"text": "a"}\n' * 1_500_000))
    with pytest.raises(InputError, match="decompresses to more than 200 times"):
        read_all(path)
    assert not [file for file in cache.rglob("*") if file.is_file() and file.stat().st_size > 100]


@pytest.mark.parametrize(
    ("name", "advice"), [("rows.gz", "rows.jsonl.gz"), ("rows.tar.gz", ".jsonl"), ("a.zip", ".gz")]
)
def test_other_archives_are_unknown_types(tmp_path, name, advice):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match="unknown file type") as caught:
        read_all(tmp_path / name)
    assert advice in str(caught.value.remedy)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_without_the_suffix_is_named(tmp_path, suffix):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(COMPRESS[suffix](CONTENT["jsonl"]))
    with pytest.raises(InputError, match=rf"the file is compressed \(\.{suffix}\)") as caught:
        read_all(path)
    assert f"rows.jsonl.{suffix}" in str(caught.value.remedy)


def test_the_original_rows_of_deidentified_data_are_not_cached(tmp_path, tiny, cache):
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(CONTENT["jsonl"]))
    data = {"train": ["rows.jsonl.gz"], "deidentify": {}}
    recipe = Recipe(name="t", model={"base": "m"}, task="text", method={"kind": "full"}, data=data)
    with pytest.raises(InputError, match="does not support compressed files"):
        prepare(recipe, tiny, recipe_dir=tmp_path, cache=cache)
    assert not cache.exists()
