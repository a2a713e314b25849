"""The demo's rows: the same bytes every time, and every conversation either taken or counted."""

import json
import subprocess
import sys
from pathlib import Path

import yaml

SCRIPT = Path(__file__).resolve().parents[2] / "demo" / "prepare_data.py"
CONVERSATIONS = [
    ["What’s the brightest  star?", "Sirius."],
    ["What’s the brightest star?", "The sun"],
    ["Who wrote it?", "A. A. Milne"],
    ["What year?", 1963],
    ["Complete the title", "Glass"],
    ["Which sea?", ""],
    ["One?", "Two", "Three"],
]


def prepare(tmp_path: Path) -> tuple[bytes, str]:
    source, target = tmp_path / "quiz.yml", tmp_path / "data" / "quiz.jsonl"
    source.write_text(yaml.safe_dump({"conversations": CONVERSATIONS}, allow_unicode=True), encoding="utf-8")
    result = subprocess.run([sys.executable, SCRIPT, source, target], capture_output=True, text=True, check=True)
    return target.read_bytes(), result.stdout


def test_rows_are_plain_chats_and_what_is_left_out_is_counted(tmp_path):
    content, printed = prepare(tmp_path)
    rows = [json.loads(line) for line in content.decode().splitlines()]
    pairs = [tuple(message["content"] for message in row["messages"]) for row in rows]
    assert pairs == [("What's the brightest star?", "Sirius"), ("Who wrote it?", "A. A. Milne"), ("What year?", "1963")]
    assert {tuple(message["role"] for message in row["messages"]) for row in rows} == {("user", "assistant")}
    assert "3 chats of 7 conversations" in printed
    for reason in ("1 not a question", "1 asked before", "1 with an empty side", "1 not one question and one answer"):
        assert reason in printed


def test_the_same_text_gives_the_same_bytes(tmp_path):
    assert prepare(tmp_path)[0] == prepare(tmp_path)[0]
