"""The demo's table: the numbers of the evaluation, examples with what each model answered."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "demo" / "compare.py"
REFERENCES = [
    json.dumps({"topic": "earnings", "company": f"firm {number} inc", "ticker": f"f{number}"}) for number in range(6)
]
BORDERS = str.maketrans("─│", "  ")
WRONG_RECORD = REFERENCES[0].replace("earnings", "acquisition")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def shown(tmp_path: Path) -> str:
    """Of six stories the tuned model gets the first wrong; the base model answers in prose."""
    roles = ("system", "user", "assistant")
    chats = [("rules", f"story of firm {number}", reference) for number, reference in enumerate(REFERENCES)]
    write_lines(
        tmp_path / "rows.jsonl",
        [
            {"messages": [{"role": role, "content": text} for role, text in zip(roles, chat, strict=True)]}
            for chat in chats
        ],
    )
    write_lines(tmp_path / "baseline.jsonl", [{"id": id, "output": f"About [firm] {id}."} for id in range(6)])
    tuned = [WRONG_RECORD, *REFERENCES[1:]]
    write_lines(tmp_path / "results.jsonl", [{"id": id, "output": text} for id, text in reversed([*enumerate(tuned)])])
    numbers = {
        "exact_match": 5 / 6,
        "exact_match_normalised": 5 / 6,
        "valid_schema": 1.0,
        "loss": 0.1,
        "perplexity": 1.1,
    }
    metrics = {
        "model": numbers,
        "baseline": {**dict.fromkeys(numbers, 0.0), "loss": 1.234567, "perplexity": 3.4371},
    }
    candidates = {
        role: {"metrics": {name: {"value": value, "error": 0.1} for name, value in values.items()}}
        for role, values in metrics.items()
    }
    (tmp_path / "summary.json").write_text(json.dumps({"candidates": candidates}), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, tmp_path / "rows.jsonl"], capture_output=True, text=True, check=True
    )
    return " ".join(result.stdout.translate(BORDERS).split())


def test_base_and_tuned_model_in_one_table(tmp_path):
    printed = shown(tmp_path)
    assert "6 held-out stories" in printed
    assert "record exactly right 0 of 6 5 of 6" in printed
    assert "JSON that follows the schema 0 of 6 6 of 6" in printed
    assert "loss (nats per token) 1.235 0.100" in printed


def test_examples_are_right_ones_and_a_wrong_one(tmp_path):
    printed = shown(tmp_path)
    for number in (0, 1, 3):
        assert f"wrong About [firm] {number}." in printed
    assert "[firm] 2" not in printed
    assert "[firm] 5" not in printed
    assert printed.count("right {") == 2
    assert printed.index("[firm] 3") < printed.index("[firm] 0")
    assert "instead of" in printed
