"""Rows of Parquet and Arrow files are the objects that were written."""

import json
from hashlib import sha256
from pathlib import Path

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.configs.sections.objectives import Classification
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.named_label import NamedLabel
from tunesmith.data.readers import columnar
from tunesmith.data.readers.sources import cut, read
from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.formats import read_row
from tunesmith.data.rows.labels import find_labels
from tunesmith.errors import InputError


def read_all(path: Path):
    return [line for shard in cut(path) for line in read(shard)]


def values(path: Path):
    return [line.value for line in read_all(path)]


def write(table: pyarrow.Table, path: Path, kind: str) -> Path:
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=4)
    elif kind == "stream":
        with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table, max_chunksize=4)
    elif kind == "file":
        with pyarrow.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table, max_chunksize=4)
    else:
        pyarrow.feather.write_feather(table, path, compression="lz4", chunksize=4)
    return path


KINDS = [("parquet", "parquet"), ("stream", "arrow"), ("file", "arrow"), ("feather", "feather"), ("file", "ipc")]


@pytest.mark.parametrize(("kind", "suffix"), KINDS)
@pytest.mark.parametrize("shard_bytes", [1, 4 << 20])
def test_streams_and_files_have_the_same_rows(tmp_path, monkeypatch, kind, suffix, shard_bytes):
    monkeypatch.setattr(columnar, "SHARD_BYTES", shard_bytes)
    rows = [{"text": f"row {number}"} for number in range(10)]
    path = write(pyarrow.Table.from_pylist(rows), tmp_path / f"rows.{suffix}", kind)
    assert values(path) == rows
    assert [line.number for line in read_all(path)] == list(range(1, 11))
    assert len(list(cut(path))) == (3 if shard_bytes == 1 else 1)


def test_the_old_feather_format_and_damaged_files_are_named(tmp_path):
    (tmp_path / "old.feather").write_bytes(b"FEA1" + bytes(100))
    with pytest.raises(InputError, match="Feather 1"):
        values(tmp_path / "old.feather")
    rows = [{"text": "word " * 1000} for _ in range(10)]
    for kind, suffix in KINDS[1:3]:
        path = write(pyarrow.Table.from_pylist(rows), tmp_path / f"{kind}.{suffix}", kind)
        path.write_bytes(path.read_bytes()[:9000])
        with pytest.raises(InputError) as caught:
            values(path)
        assert str(path) in str(caught.value.where)


def calling(name, arguments):
    return [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}]},
    ]


def tool(name, *parameters):
    properties = {parameter: {"type": "string"} for parameter in parameters}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


TOOL_ROWS = [
    {"messages": calling("weather", {"city": "Rome"}), "tools": [tool("weather", "city")]},
    {"messages": calling("time", {"zone": "UTC", "format": {"hours": 24}}), "tools": [tool("time", "zone", "format")]},
    {"messages": calling("now", {}), "tools": [tool("now")]},
    {"messages": calling("list", {"items": [{"a": 1}, {"b": "x"}]}), "tools": [tool("list", "items")]},
]


@pytest.mark.parametrize(("kind", "suffix"), KINDS)
def test_calls_and_tools_have_no_keys_of_other_rows(tmp_path, kind, suffix):
    path = write(pyarrow.Table.from_pylist(TOOL_ROWS), tmp_path / f"rows.{suffix}", kind)
    assert "zone" in str(pyarrow.Table.from_pylist(TOOL_ROWS).to_pylist()[0])  # what Arrow adds
    assert values(path) == TOOL_ROWS
    for read_value, row in zip(values(path), TOOL_ROWS, strict=True):
        assert read_row(read_value, "chat") == read_row(row, "chat")


def test_nulls_of_json_stay(tmp_path, write_jsonl):
    row = {"messages": calling("weather", {"city": "Rome", "zone": None})}
    read_value = values(write_jsonl("rows.jsonl", [row]))[0]
    (call,) = read_row(read_value, "chat").messages[1]["tool_calls"]
    assert call["function"]["arguments"] == {"city": "Rome", "zone": None}
    cells = pyarrow.table({"messages": [json.dumps(row["messages"])]})
    assert values(write(cells, tmp_path / "cells.parquet", "parquet")) == [row]


def test_maps_are_objects(tmp_path):
    kind = pyarrow.map_(pyarrow.string(), pyarrow.string())
    table = pyarrow.table({"arguments": pyarrow.array([[("city", "Rome")], [], None], kind)})
    arguments = [row["arguments"] for row in values(write(table, tmp_path / "rows.parquet", "parquet"))]
    assert arguments == [{"city": "Rome"}, {}, None]


ITEMS = st.dictionaries(
    st.sampled_from("abc"), st.text(max_size=3) | st.dictionaries(st.sampled_from("xy"), st.integers(0, 9)), max_size=3
)


@given(st.lists(ITEMS, min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_any_objects_survive_the_padding_of_structs(tmp_path_factory, items):
    rows = [{"tools": [item]} for item in items]
    try:
        table = pyarrow.Table.from_pylist(rows)
    except pyarrow.ArrowException:
        return  # a field with texts and objects is no struct
    path = tmp_path_factory.mktemp("padded") / "rows.parquet"
    try:
        write(table, path, "parquet")
    except pyarrow.ArrowException:
        return  # Parquet has no empty structs
    padded_away = [{"tools": [_without_empty(item) for item in row["tools"]]} for row in rows]
    assert [{"tools": [_without_empty(item) for item in value["tools"]]} for value in values(path)] == padded_away


def _without_empty(item):
    """An empty object inside a struct and an absent one differ in Arrow only if the field has other members."""
    return {key: value for key, value in item.items() if value != {}}


# --- names of labels


def labelled(tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["neutral", "bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label, "all": datasets.List(label)})
    rows = [{"text": "x", "label": 2, "all": [1, 2]}, {"text": "y", "label": 0, "all": []}, {"text": "z", "label": 1}]
    data = datasets.Dataset.from_list([{"all": [0], **row} for row in rows], features=features)
    if kind == "parquet":
        data.to_parquet(str(tmp_path / "rows.parquet"))
        return tmp_path / "rows.parquet"
    data.save_to_disk(str(tmp_path / "saved"))
    return next((tmp_path / "saved").glob("*.arrow"))


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_class_labels_have_their_names_in_the_order_of_their_numbers(tmp_path, tiny, kind):
    rows = values(labelled(tmp_path, kind))
    assert [row["label"] for row in rows] == [2, 0, 1]
    assert all(isinstance(row["label"], NamedLabel) for row in rows)
    assert find_labels(rows, Classification(), "f") == ["neutral", "bad", "good"]
    multi = Classification(kind="multi_label", label_column="all")
    assert find_labels(rows, multi, "f") == ["neutral", "bad", "good"]
    for settings_, labels, target in (
        (Classification(), ("neutral", "bad", "good"), 2),
        (Classification(labels=["0", "1", "2"]), ("0", "1", "2"), 2),  # recipes that number them stay valid
        (Classification(labels=["good", "neutral", "bad"]), ("good", "neutral", "bad"), 0),
    ):
        spec = EncodingSpec("classification", 64, section=settings_, labels=labels)
        (result,) = make_encoder(tiny, spec).encode(rows[:1])
        assert result.documents[0].tokens[-1] == target, result.reason


def test_a_missing_class_label_is_null(tmp_path):
    metadata = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [-1, 1, 5]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    rows = values(write(table, tmp_path / "rows.parquet", "parquet"))
    assert [row["label"] for row in rows] == [None, 1, 5]
    assert not isinstance(rows[2]["label"], NamedLabel)


def test_files_that_are_read_as_before_keep_their_hashes(tmp_path):
    def digests(table, name):
        return [shard.sha256 for shard in cut(write(table, tmp_path / name, "parquet"))]

    whole = pyarrow.Table.from_pylist([{"messages": [{"role": "user", "content": "q"}]}])
    (digest,) = digests(whole, "a.parquet")
    content = sha256((tmp_path / "a.parquet").read_bytes()).hexdigest()
    assert digest == sha256(f"{content} 0 1".encode()).hexdigest()
    (digest,) = digests(pyarrow.Table.from_pylist(TOOL_ROWS), "b.parquet")
    content = sha256((tmp_path / "b.parquet").read_bytes()).hexdigest()
    assert digest != sha256(f"{content} 0 1".encode()).hexdigest()


def test_broken_cells_are_rejected(tmp_path):
    table = pyarrow.table({"messages": ["[broken"]})
    (value,) = values(write(table, tmp_path / "rows.feather", "feather"))
    assert isinstance(value, Refusal)
