"""`data check` and `data show` through the console script."""

import json
import os
import subprocess
import sys
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.data.tokenization.families import QWEN_3

COMMAND = Path(sys.executable).with_name("tunesmith")
GOOD = {
    "messages": [{"role": "user", "content": "Where is my parcel?"}, {"role": "assistant", "content": "It is [here]."}]
}


def tunesmith(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), "data", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def project(tmp_path, tiny_llama, write_jsonl) -> Path:
    write_jsonl("rows.jsonl", [GOOD, {**GOOD, "messages": GOOD["messages"][::-1]}, "{broken", GOOD, GOOD])
    (tmp_path / "recipe.yaml").write_text(
        f"name: tiny\nmodel: {{base: {tiny_llama}}}\nmethod: {{kind: lora}}\n"
        "data: {train: [rows.jsonl], max_seq_len: 128}\n"
    )
    return tmp_path


def test_a_rejected_row_is_reported_with_its_line_and_exits_with_2(project):
    for source in ("recipe.yaml", "rows.jsonl"):
        ended = tunesmith("check", source, cwd=project)
        assert ended.returncode == 2
        assert "rows.jsonl:3: invalid JSON" in ended.stdout
        assert "rejected; data.max_rejects allows" in ended.stdout
        assert "Traceback" not in ended.stderr


def test_rejected_rows_within_the_recipes_limit_exit_with_0(project):
    ended = tunesmith("check", "recipe.yaml", "--set", "data.max_rejects=2", cwd=project)
    assert ended.returncode == 0, ended.stdout
    assert "rows.jsonl:3" in ended.stdout


def test_row_counts_of_a_json_check_add_up(project):
    summary = json.loads(tunesmith("check", "recipe.yaml", "--json", cwd=project).stdout)
    assert summary["rows"] == 5 == sum(summary["fates"].values())
    assert summary["duplicates"] == 2
    assert summary["unit"] == "tokens"
    bare = json.loads(tunesmith("check", "rows.jsonl", "--json", cwd=project).stdout)
    assert (bare["task"], bare["unit"]) == ("chat", "characters")
    limited = json.loads(tunesmith("check", "rows.jsonl", "--json", "--limit", "1", cwd=project).stdout)
    assert len(limited["rejects"]) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["check", "nowhere.jsonl"], "nowhere.jsonl"),
        (["check", "nowhere.yaml"], "recipe.yaml"),
        (["check", "rows.jsonl", "--task", "chatt"], "--task"),
        (["check", "rows.jsonl", "--set", "data.max_rejects=2"], "--set"),
        (["show", "nowhere.yaml"], "recipe.yaml"),
    ],
)
def test_wrong_arguments_give_one_clear_message(project, arguments, expected):
    ended = tunesmith(*arguments, cwd=project)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert expected in ended.stderr


def test_trained_spans_are_bracketed_when_output_is_not_a_terminal(project):
    """Only the assistant's text and its stop token; brackets within the text are left alone."""
    shown = tunesmith("show", "recipe.yaml", "-n", "1", cwd=project).stdout
    assert "⟦It is [here].<|im_end|>⟧" in shown
    assert shown.count("⟦") == 1
    assert "Where is my parcel?<|im_end|>" in shown
    assert "\x1b[" not in shown


def test_trained_spans_are_colored_on_a_terminal(project):
    leader, follower = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [str(COMMAND), "data", "show", "recipe.yaml", "-n", "1"], cwd=project, stdout=follower, env=environment
    )
    os.close(follower)
    output = b""
    try:
        while piece := os.read(leader, 1 << 16):
            output += piece
    except OSError:  # the end of a pseudo-terminal
        pass
    os.close(leader)
    assert process.wait() == 0
    text = output.decode()
    assert "\x1b[1;32mIt is [here].<|im_end|>" in text
    assert "\x1b[2mWhere is my parcel?" in text
    assert "⟦" not in text


def test_rows_are_shown_from_any_index_with_their_outcome(project):
    (row,) = json.loads(tunesmith("show", "recipe.yaml", "--first", "2", "-n", "1", "--json", cwd=project).stdout)
    assert (row["row"], row["line"], row["fate"]) == (2, 3, "rejected")
    plain = tunesmith("show", "recipe.yaml", "--first", "2", "-n", "1", cwd=project).stdout
    assert "invalid JSON" in plain
    assert "no row 99" in tunesmith("show", "recipe.yaml", "--first", "99", cwd=project).stderr


def test_an_encoding_without_the_characters_does_not_fail(project):
    ended = tunesmith("show", "recipe.yaml", "-n", "1", cwd=project, PYTHONIOENCODING="ascii")
    assert ended.returncode == 0, ended.stderr
    assert "It is [here]." in ended.stdout


def test_ignored_keys_and_sequences_beyond_the_models_positions_are_named(project, write_jsonl):
    write_jsonl("rows.jsonl", [{**GOOD, "shop": "north"}])
    ended = tunesmith("check", "recipe.yaml", "--set", "data.max_seq_len=999999", cwd=project)
    assert ended.returncode == 0, ended.stdout
    assert "keys that are not read: shop" in ended.stdout
    assert "warning: data.max_seq_len is 999,999, but the model was trained with" in ended.stdout


def test_labels_and_answers_are_shown_by_name(project, write_jsonl):
    write_jsonl("rows.jsonl", [{"review": "Never came.", "stars": "bad one"}, {"review": "x", "stars": "good"}])
    classify = ("task=classification", "data.columns.text=review", "data.columns.label=stars")
    options = [option for override in classify for option in ("--set", override)]
    shown = tunesmith("show", "recipe.yaml", "-n", "1", *options, cwd=project)
    assert shown.stdout.splitlines()[1:3] == ["Never came.", "label: bad one"], shown.stderr
    write_jsonl("rows.jsonl", [{"prompt": "Hi", "chosen": "Good day.", "rejected": "What?"}])
    shown = tunesmith("show", "recipe.yaml", "--set", "task=preference", cwd=project)
    before, _, after = shown.stdout.partition("rejected:\n")
    assert "chosen:\n" in before
    assert "⟦Good day." in before
    assert "⟦What?" in after


def test_what_the_template_omits_is_rejected_or_a_warning(project, write_jsonl):
    rows = [{"messages": [{"role": "developer", "content": "Be brief."}, *GOOD["messages"]]}]
    rows.append({"messages": [GOOD["messages"][0], {**GOOD["messages"][1], "thinking": "hm"}, *GOOD["messages"]]})
    write_jsonl("rows.jsonl", rows)
    (project / "qwen.jinja").write_text(QWEN_3)
    options = ("--set", "model.chat_template=qwen.jinja")
    ended = tunesmith("check", "recipe.yaml", *options, cwd=project)
    assert ended.returncode == 2
    assert "rows.jsonl:1: the chat template" in ended.stdout
    assert "qwen.jinja omits messages[0].content (developer)" in ended.stdout
    assert "warning: the chat template omits thinking in 1 row\n" in ended.stdout
    kept = tunesmith("check", "recipe.yaml", *options, "--set", "data.omitted_fields=keep", "--json", cwd=project)
    assert kept.returncode == 0
    assert json.loads(kept.stdout)["omitted"] == {"developer messages": 1, "thinking": 1}


def test_a_first_row_with_values_that_json_lacks_is_shown(tmp_path):
    row = {"text": "Hello.", "sent": datetime(2024, 2, 29), "raw": b"x", "price": Decimal("1.50")}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    shown = tunesmith("check", "rows.parquet", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert '"sent": "2024-02-29 00:00:00"' in shown.stdout
    ended = tunesmith("check", "rows.parquet", "--json", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["example"]["price"] == "1.50"
