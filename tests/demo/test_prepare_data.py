"""The demo's rows: the same bytes every time, records that the stories settle, no company on both sides."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "demo" / "prepare_data.py"
SYLLABLES = ("ba", "co", "du", "fe", "ki", "lo", "mu", "ni", "po", "ra", "si", "tu")
EVENTS = {
    "acq": ("buys rival", "agreed to acquire privately held lamps co for cash"),
    "earn": ("sees loss", "expects a loss for the quarter after a charge"),
    "grain": ("ships wheat", "shipped wheat"),
}
HEADER = "Category\tText\nd\tstring\nclass\t\n"


def story(label: str, name: str, ticker: str) -> str:
    headline, body = EVENTS[label]
    return f"{label}\t{name} {ticker} {headline} {name} inc said it {body} reuter \n"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, str]:
    return prepare(tmp_path_factory.mktemp("demo"))


def prepare(folder: Path) -> tuple[Path, str]:
    """Enough invented stories for both files, and some that give no certain record."""
    names = ["".join(parts) for parts in product(SYLLABLES, repeat=3)]
    labels = ["acq", "earn"]
    lines = [story(labels[number % 2], name, f"{name[::2]}x") for number, name in enumerate(names[:900])]
    uncertain = [
        story("acq", "widget works", "loss"),  # a word of other stories, no ticker
        story("grain", "mill farm", "mllf"),  # a topic that the demo does not have
        "acq\tlone star lnst buys rival it said so and nothing else of it was in the story reuter \n",
    ]
    paths = [folder / "train.tab", folder / "test.tab"]
    paths[0].write_text(HEADER + "".join([*lines[:600], *uncertain]), encoding="utf-8")
    paths[1].write_text(HEADER + "".join([*lines[500:], *uncertain]), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, SCRIPT, *paths, folder / "data"], capture_output=True, text=True, check=True
    )
    return folder / "data", result.stdout


def records(path: Path) -> list[tuple[str, dict]]:
    """(story, record) of each row."""
    chats = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert {tuple(message["role"] for message in chat) for chat in chats} == {("system", "user", "assistant")}
    return [(chat[1]["content"], json.loads(chat[2]["content"])) for chat in chats]


def test_records_follow_the_schema_and_are_in_the_story(prepared):
    directory, printed = prepared
    schema = json.loads((SCRIPT.parent / "record.schema.json").read_text(encoding="utf-8"))
    validator = pytest.importorskip("jsonschema").Draft202012Validator(schema)
    for split, count in (("train", 200), ("held-out", 50)):
        rows = records(directory / f"{split}.jsonl")
        assert len(rows) == count
        assert f"{split}.jsonl: {count} of" in printed
        for text, record in rows:
            validator.validate(record)
            name, after_name = text.split()[:2]
            assert record == {"topic": record["topic"], "company": f"{name} inc", "ticker": after_name}
            assert f" {name} inc said " in text
            assert record["topic"] == ("acquisition" if "buys rival" in text else "earnings")


def test_held_out_companies_are_in_no_training_row(prepared):
    directory, _ = prepared
    train, held_out = (
        {record["company"] for _, record in records(directory / f"{split}.jsonl")} for split in ("train", "held-out")
    )
    assert len(train) == 200
    assert len(held_out) == 50
    assert not train & held_out


def test_the_same_text_gives_the_same_bytes(prepared, tmp_path):
    directory, _ = prepared
    again, _ = prepare(tmp_path)
    for split in ("train", "held-out"):
        assert (again / f"{split}.jsonl").read_bytes() == (directory / f"{split}.jsonl").read_bytes()


def test_too_few_stories_are_an_error_that_names_the_topic(tmp_path):
    paths = [tmp_path / "train.tab", tmp_path / "test.tab"]
    for path in paths:
        path.write_text(HEADER + story("acq", "baba", "bbx"), encoding="utf-8")
    result = subprocess.run([sys.executable, SCRIPT, *paths, tmp_path / "data"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "30 stories about acquisition needed, 1 in the file" in result.stderr
