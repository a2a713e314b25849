"""CSV files of any line ends and delimiter have the same rows and line numbers."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.configs.load import load_recipe_text
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.shard import shard_id
from tunesmith.data.readers import delimited
from tunesmith.data.readers.shard import Shard
from tunesmith.data.readers.sources import cut, read
from tunesmith.data.refusal import Refusal
from tunesmith.errors import InputError


def lines(path, delimiter=None):
    return [(line.number, line.value) for shard in cut(path, delimiter) for line in read(shard)]


CELLS = st.text(st.sampled_from('ab;,\t "é\n\r'), max_size=6).map(lambda text: text.replace("\r\n", "\n"))


@given(
    st.lists(st.tuples(CELLS.filter(str.strip), CELLS), min_size=1, max_size=6),
    st.sampled_from(["\r", "\n", "\r\n"]),
    st.sampled_from([",", ";", "\t"]),
    st.booleans(),
    st.sampled_from([1, 20, 4 << 20]),
)
@settings(max_examples=60, deadline=None)
def test_line_ends_and_delimiters_do_not_change_the_rows(tmp_path_factory, rows, ending, delimiter, bom, shard_bytes):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ending, quoting=csv.QUOTE_ALL)
    writer.writerows([("one", "two"), *rows])
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbf" * bom + text.getvalue().encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "SHARD_BYTES", shard_bytes)
        patch.setattr(delimited, "_READ_BYTES", 7)
        read_rows = lines(path)
    assert [value for _, value in read_rows] == [dict(zip(("one", "two"), row, strict=True)) for row in rows]
    mark = ending if ending == "\r" else "\n"
    sizes = [1 + sum(cell.count(mark) for cell in row) for row in rows]
    assert [number for number, _ in read_rows] == [2 + sum(sizes[:index]) for index in range(len(rows))]


def test_lone_carriage_returns_end_lines(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'text,id\rone,1\r"two\nlines",2\rthree\r')
    read_rows = lines(path)
    assert read_rows[:2] == [(2, {"text": "one", "id": "1"}), (3, {"text": "two\nlines", "id": "2"})]
    assert read_rows[2][0] == 4
    assert "1 fields, the header 2" in read_rows[2][1].reason


def test_a_carriage_return_inside_a_field_is_named_in_plain_words(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,id\none\rtwo,1\n")
    (_, refusal), *_ = lines(path)
    assert isinstance(refusal, Refusal)
    assert "a line break (CR) outside quotes" in refusal.reason
    assert "newline=" not in refusal.reason


def test_json_lines_with_carriage_returns_only_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\r{"text": "b"}\r')
    ((_, refusal),) = lines(path)
    assert isinstance(refusal, Refusal)
    assert "CR" in refusal.remedy
    assert "tr '\\r' '\\n'" in refusal.remedy
    path.write_bytes(b'{"text":\r"a"}\n')  # white space of JSON
    assert lines(path) == [(1, {"text": "a"})]


def test_the_delimiter_is_detected_or_given(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("one|two\na|b;c\n")
    assert lines(path) == [(2, {"one|two": "a|b;c"})]
    assert lines(path, "|") == [(2, {"one": "a", "two": "b;c"})]
    path.write_text("one\ttwo\na\tb,c\n")
    assert lines(path) == [(2, {"one": "a", "two": "b,c"})]
    path.write_text('"one, or 1";two\na;b\n')  # the comma is quoted
    assert lines(path) == [(2, {"one, or 1": "a", "two": "b"})]
    path.write_text("text\nHello, you\n")
    ((_, refusal),) = lines(path)
    assert "data.csv_delimiter" in refusal.remedy
    assert lines(path, ";") == [(2, {"text": "Hello, you"})]


def test_a_given_delimiter_reaches_other_processes_and_the_cache_key(tmp_path, tiny):
    (tmp_path / "rows.csv").write_text("text\nHello, you\n")
    (given_one,), (detected,) = list(cut(tmp_path / "rows.csv", ";")), list(cut(tmp_path / "rows.csv"))
    copy = Shard.from_portable(given_one.portable())
    assert [line.value for line in read(copy)] == [{"text": "Hello, you"}]
    encoder = make_encoder(tiny, EncodingSpec("text", 64))
    assert shard_id(given_one, encoder) != shard_id(detected, encoder)


RECIPE = "name: t\nmodel: {base: m}\nmethod: {kind: full}\ndata: {train: [a.csv], %s}\n"


@pytest.mark.parametrize(("written", "delimiter"), [('";"', ";"), ("'|'", "|"), ('"\\t"', "\t"), ("\\t", "\t")])
def test_the_recipe_names_the_delimiter(written, delimiter):
    assert load_recipe_text(RECIPE % f"csv_delimiter: {written}").data.csv_delimiter == delimiter


@pytest.mark.parametrize("written", ['"ab"', "'\"'", '"\\n"', '""'])
def test_other_delimiters_are_rejected(written):
    with pytest.raises(InputError, match=r"`data\.csv_delimiter` takes"):
        load_recipe_text(RECIPE % f"csv_delimiter: {written}")
