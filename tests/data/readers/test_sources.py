import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.readers import columnar, delimited, lines, lists
from tunesmith.data.readers.sources import cut, read, resolve
from tunesmith.data.refusal import Refusal
from tunesmith.errors import InputError

ROWS = [{"prompt": f'q {i} "x", [{{ é\n', "completion": "a\\" * (i + 1)} for i in range(40)]


def read_all(path):
    return [line for shard in cut(path) for line in read(shard)]


def values(path):
    return [line.value for line in read_all(path)]


def write_table(directory, kind):
    """Write ROWS to a file of a kind; return its path and the line of each row."""
    path = directory / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    elif kind == "json":
        path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "]", encoding="utf-8")
        return path, range(2, 42)
    elif kind in ("csv", "tsv"):
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "completion"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
        return path, range(2, 82, 2)  # every prompt contains a line break
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=7)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        table = pyarrow.Table.from_pylist(ROWS)
        with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table, max_chunksize=9)
    return path, range(1, 41)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "arrow"])
@pytest.mark.parametrize("shard_bytes", [1, 200, 4 << 20])
def test_every_file_type_gives_the_same_rows_for_any_shard_size(tmp_path, monkeypatch, kind, shard_bytes):
    for module in (lines, lists, delimited, columnar):
        monkeypatch.setattr(module, "SHARD_BYTES", shard_bytes)
    path, numbers = write_table(tmp_path, kind)
    rows = read_all(path)
    assert [line.value for line in rows] == ROWS
    assert [line.number for line in rows] == list(numbers)
    assert len(list(cut(path))) == 1 if shard_bytes > 10**6 else len(list(cut(path))) > 4


@given(
    st.lists(
        st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.integers() | st.none(), max_size=3), min_size=1
    )
)
@settings(max_examples=60, deadline=None)
def test_a_list_is_read_like_json_loads(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("list") / "rows.json"
    for indent in (None, 2):
        path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8", newline="")
        assert values(path) == rows


def test_byte_order_marks_and_windows_line_ends_are_ignored(tmp_path):
    plain, windows = tmp_path / "plain.jsonl", tmp_path / "windows.jsonl"
    plain.write_bytes(b'{"text": "a"}\n\n{"text": "b"}\n')
    windows.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert values(plain) == values(windows) == [{"text": "a"}, {"text": "b"}]
    assert [line.number for line in read_all(windows)] == [1, 3]
    (tmp_path / "windows.csv").write_bytes(b"\xef\xbb\xbftext,id\r\na,1\r\n\r\nb,2\r\n")
    assert values(tmp_path / "windows.csv") == [{"text": "a", "id": "1"}, {"text": "b", "id": "2"}]
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert values(tmp_path / "windows.txt") == [{"text": "a\nb"}]


def test_json_lines_with_the_suffix_json_are_detected(tmp_path):
    (tmp_path / "a.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert values(tmp_path / "a.json") == [{"text": "a"}, {"text": "b"}]


def deep(depth: int) -> bytes:
    return b'{"a": ' + b"[" * depth + b"]" * depth + b"}"


FAULTS = {
    b'{"text": "a"': "cut off",
    b'{"text": "a"} {"text": "b"}': "invalid JSON at column 15",
    b"{'text': 'a'}": "invalid JSON at column 2",
    b'{"text": NaN}': "NaN is not a JSON value",
    b'{"text": -Infinity}': "-Infinity is not a JSON value",
    b'{"text": "a", "text": "b"}': 'duplicate key "text"',
    b'{"text": "\xff\xfe"}': "invalid UTF-8 at byte 11 of the line (0xff)",
    b'{"text": "\xed\xa0\x80"}': "invalid UTF-8",
    b'{"text": "a\x00b"}': "NUL bytes",
    b"\x00\x00\x00": "NUL bytes",
    b'{"text": "a\x07"}': "invalid JSON",
    b'{"x": ' + b"1" * 5000 + b"}": "invalid JSON",
    deep(65): "nested more than 64 deep",
    deep(100_000): "nested more than 64 deep",
    b"garbage": "invalid JSON at column 1",
}


@pytest.mark.parametrize("raw", FAULTS, ids=list(FAULTS.values()))
def test_an_invalid_line_is_reported_with_its_number_and_the_others_are_read(tmp_path, raw):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "first"}\n' + raw + b'\n{"text": "last"}\n')
    first, faulty, last = read_all(path)
    assert (first.value, last.value) == ({"text": "first"}, {"text": "last"})
    assert (first.number, faulty.number, last.number) == (1, 2, 3)
    assert isinstance(faulty.value, Refusal)
    assert FAULTS[raw] in f"{faulty.value.reason}; {faulty.value.remedy}"


def test_brackets_inside_strings_do_not_count_as_nesting(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "[{" * 500 + '"[\\'}) + "\n" + deep(60).decode())
    assert [isinstance(value, Refusal) for value in values(tmp_path / "a.jsonl")] == [False, False]


def test_a_huge_line_is_rejected_without_loading_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(lists, "MAX_ROW_BYTES", 1000)
    huge = json.dumps({"text": "x" * 5000})
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{huge}\n{{"text": "b"}}\n{huge}')
    rows = read_all(tmp_path / "a.jsonl")
    assert [line.number for line in rows] == [1, 2, 3, 4]
    assert "5,013 bytes" in rows[1].value.reason
    assert "bytes" in rows[3].value.reason
    assert len(rows[1].raw) <= 1024
    (tmp_path / "a.json").write_text(f'[{{"text": "a"}}, {huge}, {{"text": "b"}}]')
    assert [isinstance(value, Refusal) for value in values(tmp_path / "a.json")] == [False, True, False]


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "txt", "csv"])
def test_an_empty_file_is_one_rejected_row(tmp_path, content, kind):
    if kind == "csv" and content:
        pytest.skip("a CSV file of blank lines has an empty header")
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content)
    (line,) = read_all(path)
    assert line.number == 1
    assert "empty" in line.value.reason or "no rows" in line.value.reason


def test_a_table_without_rows_is_one_rejected_row(tmp_path):
    (tmp_path / "a.csv").write_text("text\n")
    (tmp_path / "a.json").write_text("[ ]")
    for name in ("a.csv", "a.json"):
        (line,) = read_all(tmp_path / name)
        assert isinstance(line.value, Refusal)


def test_invalid_elements_of_a_list_are_reported(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"},\n {"text": nan},\n 5,\n {"text": "b"')
    first, bad, number, torn = read_all(path)
    assert (first.value, number.value) == ({"text": "a"}, 5)
    assert "invalid JSON" in bad.value.reason
    assert (torn.number, "ends inside this element" in torn.value.reason) == (4, True)
    for text, message in (('[{"a": 1}] x', "after the end"), ('[{"a": 1}, {"a": 2}', "no closing")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_all(path)


def test_invalid_csv_records_are_reported(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,id\na,1\nb\n"c"x,3\n\xff,4\ne,5\n"open\nfor ever,6\n')
    rows = read_all(path)
    reasons = [line.value.reason if isinstance(line.value, Refusal) else line.value["text"] for line in rows]
    assert [line.number for line in rows] == [2, 3, 4, 5, 6, 7]
    assert reasons[0] == "a"
    assert "1 fields, the header 2" in reasons[1]
    assert "invalid CSV" in reasons[2]
    assert "invalid UTF-8" in reasons[3]
    assert reasons[4] == "e"
    assert "invalid CSV" in reasons[5]
    path.write_text("text,text\na,b\n")
    with pytest.raises(InputError, match="duplicate column"):
        read_all(path)


def test_nested_csv_cells_are_parsed_as_json(tmp_path):
    messages = [{"role": "user", "content": "q"}]
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(messages)], ["[broken"]])
    good, bad = values(tmp_path / "a.csv")
    assert good == {"messages": messages}
    assert "not valid JSON" in bad.reason


def test_a_file_that_changes_while_being_read_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n')
    (shard,) = cut(path)
    path.write_text('{"text": "b"}\n')
    with pytest.raises(InputError, match="changed while"):
        list(read(shard))


def test_relative_paths_are_resolved_against_the_recipe_then_the_working_directory(tmp_path, monkeypatch):
    recipe, work = tmp_path / "recipe", tmp_path / "work"
    for folder in (recipe, work):
        folder.mkdir()
        (folder / "both.jsonl").write_text("{}")
    (work / "only.jsonl").write_text("{}")
    (recipe / "part-2.jsonl").write_text("{}")
    (recipe / "part-1.jsonl").write_text("{}")
    monkeypatch.chdir(work)
    assert resolve(["both.jsonl", "only.jsonl"], recipe) == [recipe / "both.jsonl", work / "only.jsonl"]
    assert [path.name for path in resolve(["part-*.jsonl"], recipe)] == ["part-1.jsonl", "part-2.jsonl"]
    assert resolve(["both.jsonl", "both.jsonl", str(recipe / "both.jsonl")], recipe) == [recipe / "both.jsonl"]
    with pytest.raises(InputError) as caught:
        resolve(["nothing.jsonl"], recipe)
    assert str(recipe / "nothing.jsonl") in str(caught.value)
    assert str(work / "nothing.jsonl") in str(caught.value)


def test_dataset_directories_are_resolved_to_their_files(tmp_path):
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "state.json").write_text("{}")
    path, _ = write_table(saved, "arrow")
    assert resolve([str(saved)], tmp_path) == [path]
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(InputError, match="several splits") as caught:
        resolve([str(tmp_path)], tmp_path)
    assert str(saved) in str(caught.value)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name in ("train.jsonl", "validation.jsonl"):
        (mixed / name).write_text("{}")
    with pytest.raises(InputError, match=r"validation\.jsonl"):
        resolve([str(mixed)], tmp_path)


def test_unknown_file_types_and_damaged_tables_are_named_in_the_error(tmp_path):
    for name, content in (("a.xlsx", b"PK"), ("a.parquet", b"not parquet"), ("a.arrow", b"not arrow at all")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_all(tmp_path / name)
        assert name in str(caught.value)
        assert caught.value.remedy


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_utf16_is_named_with_the_command_that_converts_it(tmp_path, kind, encoding):
    path = tmp_path / f"rows.{kind}"
    text = {"jsonl": '{"text": "one"}\n{"text": "two"}\n', "csv": "text\none\ntwo\n", "txt": "one two three"}[kind]
    path.write_bytes(text.encode(encoding))
    with pytest.raises(InputError, match="the file is UTF-16, not UTF-8") as caught:
        read_all(path)
    assert f"iconv -f UTF-16 -t UTF-8 {path.name}" in str(caught.value.remedy)


def test_semicolons_separate_columns_if_the_header_has_no_comma(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt;completion\n"a, b; c";1,5\nx;y\n')
    assert values(path) == [{"prompt": "a, b; c", "completion": "1,5"}, {"prompt": "x", "completion": "y"}]
    path.write_text("prompt,completion;note\na;b,c\n")
    assert values(path) == [{"prompt": "a;b", "completion;note": "c"}]
