"""Text of users is printed literally, whatever rich or a terminal would make of it."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from tunesmith.launcher.terminal import TextConsole

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = [
    "rows.jsonl:100: wrong",
    "[bold]not bold[/bold]",
    "[/]",
    ":smile:",
    "\\[x]",
    "[link=https://x.y]z[/link]",
]


def printed(*texts: str) -> str:
    stream = io.StringIO()
    console = TextConsole(stream, width=10_000, force_terminal=True, color_system="truecolor")
    for text in texts:
        console.print(text)
    return stream.getvalue()


@pytest.mark.parametrize("text", INTERPRETED)
def test_markup_and_emoji_codes_are_printed_as_they_are(text):
    assert printed(text) == f"{text}\n"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row(text)
    stream = io.StringIO()
    TextConsole(stream, width=10_000).print(table)
    assert stream.getvalue().rstrip() == text


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=80))
def test_any_printable_text_is_printed_as_it_is(text):
    assert printed(text) == f"{text}\n"


def test_control_sequences_do_not_reach_the_terminal():
    assert printed("a\x1b[2Jb\x9b31mc\x07d\x7fe") == "a\\x1b[2Jb\\x9b31mc\\x07d\\x7fe\n"
    assert printed("two\nlines\tand a tab") == "two\nlines   and a tab\n"


def test_data_check_and_show_print_rows_literally(tmp_path, tiny_llama):
    row = {
        "messages": [
            {"role": "user", "content": "[red]:100: hello[/red]\x1b[2J"},
            {"role": "assistant", "content": "[i]"},
        ]
    }
    name = "rows:100:[bold].jsonl"
    (tmp_path / name).write_text(json.dumps(row) + "\n{broken\n")
    (tmp_path / "recipe.yaml").write_text(
        f"name: tiny\nmodel: {{base: {tiny_llama}}}\nmethod: {{kind: lora}}\n"
        f"data: {{train: ['rows:100:[[]bold].jsonl'], max_seq_len: 128, max_rejects: 1}}\n"
    )
    command = Path(sys.executable).with_name("tunesmith")
    checked = subprocess.run([command, "data", "check", name], cwd=tmp_path, capture_output=True, text=True)
    assert f"{name}:2: " in checked.stdout
    shown = subprocess.run([command, "data", "show", "recipe.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "[red]:100: hello[/red]\\x1b[2J" in shown.stdout
    assert name in shown.stdout


def test_every_console_of_the_product_prints_literally():
    packages = ("cli", "data", "evaluation", "launcher", "report", "serving", "training")
    files = (path for package in packages for path in (ROOT / package).rglob("*.py"))
    assert [path for path in files if re.search(r"\bConsole\(", path.read_text(encoding="utf-8"))] == []
