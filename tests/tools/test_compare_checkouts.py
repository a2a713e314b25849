"""compare_checkouts reports equal checkouts as equal and detects every kind of difference."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "compare_checkouts.py"
pytestmark = pytest.mark.slow
sys.path.insert(0, str(ROOT / "tools"))
from compare.recipes import CASES, write_models  # noqa: E402
from compare.results import PARTS, compare, differences  # noqa: E402
from compare.running import Checkout, Run  # noqa: E402


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Path:
    """Results of this checkout for a recipe that has every part."""
    out = tmp_path_factory.mktemp("compared")
    write_models(out / "models")
    (case,) = (case for case in CASES if case.name == "lora")
    Run(case, Checkout(ROOT), out / "base" / case.name).run()
    return out / "base" / case.name


@pytest.fixture
def copy(result, tmp_path) -> Path:
    return shutil.copytree(result, tmp_path / "new" / result.name)


def differing_parts(base: Path, new: Path) -> dict[str, str]:
    """Return the parts that differ, with the first difference of each."""
    return {finding.what: finding.difference for finding in compare(base, new) if finding.difference}


def test_every_part_exists_and_equals_itself(result, copy):
    findings = compare(result, copy)
    assert [finding.what for finding in findings] == list(PARTS)
    assert all(finding.number and finding.difference is None for finding in findings), findings


def test_unused_new_recipe_section_is_not_a_difference(result, copy):
    alter_json(copy / "run/plan.json", lambda plan: plan["recipe"].update(later={"beta": 0.1}))
    assert differing_parts(result, copy) == {}
    assert "later" in differing_parts(copy, result)["plan"]  # but a removed section is
    with open(copy / "run/recipe.yaml", "a", encoding="utf-8") as file:
        file.write("later: {beta: 0.1}\n")
    assert "later" in differing_parts(result, copy)["plan"]


def only(paths: Any) -> Path:
    """Return the last path by name."""
    return sorted(paths)[-1]


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x01
    path.write_bytes(bytes(content))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old} is not in {path}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def alter_line(path: Path, alter: Callable[[dict[str, Any]], object], **where: object) -> None:
    """Edit the first line with the given field values."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    alter(next(line for line in lines if all(line.get(key) == value for key, value in where.items())))
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines), encoding="utf-8")


def alter_json(path: Path, alter: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    alter(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def last_bit(key: str) -> Callable[[dict[str, Any]], object]:
    """Return an edit that replaces a field by the next float."""
    return lambda line: line.update({key: math.nextafter(line[key], math.inf)})


def alter_header(path: Path, old: bytes, new: bytes) -> None:
    """Edit the header of a safetensors file in place."""
    content = path.read_bytes()
    assert len(old) == len(new)
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def reverse_shape(path: Path) -> None:
    """Transpose the shape of a tensor without changing its bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    tensor = next(value for name, value in header.items() if name != "__metadata__" and len(set(value["shape"])) == 2)
    tensor["shape"].reverse()
    packed = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(packed) == length
    path.write_bytes(content[:8] + packed + content[8 + length :])


def step_line(path: Path) -> str:
    return next(line for line in path.read_text().splitlines(True) if '"kind":"step"' in line)


def rename(path: Path) -> None:
    path.rename(path.with_name("other-name"))


ALTERATIONS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a bit of an exported tensor": ("export", lambda d: flip_bit(d / "run/export/adapter_model.safetensors")),
    "a bit of a merged tensor": ("export", lambda d: flip_bit(d / "merged/model.safetensors")),
    "a bit of a checkpoint": ("checkpoints", lambda d: flip_bit(only(d.glob("run/checkpoints/*/model.safetensors")))),
    "a bit of an optimizer": (
        "checkpoints",
        lambda d: flip_bit(only(d.glob("run/checkpoints/*/optimizer.safetensors"))),
    ),
    "the shape of a tensor": ("export", lambda d: reverse_shape(d / "run/export/adapter_model.safetensors")),
    "the type of a tensor": (
        "export",
        lambda d: alter_header(d / "run/export/adapter_model.safetensors", b'"F32"', b'"I32"'),
    ),
    "header metadata": (
        "export",
        lambda d: alter_header(d / "run/export/adapter_model.safetensors", b'"format":"pt"', b'"format":"np"'),
    ),
    "the export's configuration": (
        "export",
        lambda d: replace(d / "run/export/adapter_config.json", '"r": 4', '"r": 5'),
    ),
    "a loss of training": (
        "losses",
        lambda d: alter_line(d / "run/events.jsonl", last_bit("loss"), kind="step", step=9),
    ),
    "a gradient's norm": ("losses", lambda d: alter_line(d / "run/events.jsonl", last_bit("grad_norm"), kind="step")),
    "a validation loss": (
        "losses",
        lambda d: alter_line(d / "run/events.jsonl", last_bit("loss"), when="after", kind="evaluation"),
    ),
    "a loss of general rows": (
        "losses",
        lambda d: alter_line(d / "run/events.jsonl", last_bit("loss"), kind="retained"),
    ),
    "a loss of few-shot prompts": (
        "losses",
        lambda d: alter_line(d / "run/events.jsonl", last_bit("loss"), kind="few_shot"),
    ),
    "a missing step": (
        "losses",
        lambda d: alter_line(d / "run/events.jsonl", lambda e: e.update(kind="x"), kind="step"),
    ),
    "a duplicated step": (
        "losses",
        lambda d: (d / "run/events.jsonl").open("a").write(step_line(d / "run/events.jsonl")),
    ),
    "a missing field": (
        "losses",
        lambda d: alter_line(d / "run/events.jsonl", lambda e: e.pop("step_s"), kind="step"),
    ),
    "an answer": (
        "answers",
        lambda d: alter_line(
            d / "run/events.jsonl", lambda e: e["items"][0].update(answer="?"), kind="answers", when="after"
        ),
    ),
    "a byte of an index": ("index", lambda d: flip_bit(only(d.glob("cache/index/*/train/tokens.u32")))),
    "a byte of the supervision mask": (
        "index",
        lambda d: flip_bit(only(d.glob("cache/index/*/validation/supervised.u8"))),
    ),
    "a longer index": (
        "index",
        lambda d: only(d.glob("cache/index/*/train/document_rows.i64")).open("ab").write(b"\0"),
    ),
    "a rendered row": ("rows", lambda d: alter_json(d / "show.out", lambda rows: rows[5]["segments"][0].reverse())),
    "a row's outcome": (
        "rows",
        lambda d: alter_line(d / "run/receipts/train.jsonl", lambda row: row.update(fate="dropped")),
    ),
    "the ledger": ("ledger", lambda d: alter_line(only(d.glob("run/ledger/*")), lambda e: e["rows"].reverse(), step=3)),
    "a row's own loss": (
        "evaluations",
        lambda d: alter_line(only(d.glob("run/evaluations/step-*")), last_bit("loss")),
    ),
    "a decision of the plan": (
        "plan",
        lambda d: alter_json(d / "run/plan.json", lambda plan: plan["batch"].update(warmup_steps=9)),
    ),
    "the bytes of a choice": (
        "plan",
        lambda d: alter_json(d / "run/plan.json", lambda plan: plan["choices"][-1].update(num_bytes=1)),
    ),
    "a recipe's default": (
        "plan",
        lambda d: alter_json(d / "run/plan.json", lambda plan: plan["recipe"]["optimization"].pop("eps")),
    ),
    "a whole number that became a fraction": (
        "plan",
        lambda d: alter_json(d / "run/plan.json", lambda plan: plan["batch"].update(micro_batch_size=2.0)),
    ),
    "a kernel's difference": (
        "events",
        lambda d: alter_line(d / "run/events.jsonl", lambda e: e["items"][0].update(difference=1.0), kind="kernels"),
    ),
    "the gate of the export": (
        "events",
        lambda d: alter_line(d / "run/events.jsonl", lambda e: e["gate"].update(rows=5), kind="export"),
    ),
    "a warning": (
        "events",
        lambda d: (d / "run/events.jsonl").open("a").write('{"kind":"warning","code":"x","message":"y"}\n'),
    ),
    "the status": ("status", lambda d: alter_json(d / "run/status.json", lambda status: status.update(phase="failed"))),
    "the launch record": (
        "status",
        lambda d: alter_json(d / "run/launch.json", lambda launch: launch.update(backend="ray")),
    ),
    "a chat's answer": ("outputs", lambda d: alter_json(d / "chat.out", lambda answer: answer.update(text="?"))),
    "an evaluated row": ("outputs", lambda d: alter_line(d / "evaluated/results.jsonl", last_bit("loss"))),
    "a file's name": ("files", lambda d: rename(d / "run/recipe.yaml")),
    "a key of the cache": ("files", lambda d: rename(only(d.glob("cache/shards/" + "?" * 64)))),
    "an exit code": (
        "commands",
        lambda d: alter_json(d / "commands.json", lambda record: record["commands"][0].update(exit_code=1)),
    ),
    "a file that is not JSON": ("plan", lambda d: (d / "run/plan.json").write_text("{")),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_alteration_is_detected(result, copy, name):
    part, alter = ALTERATIONS[name]
    alter(copy)
    assert part in differing_parts(result, copy)
    assert part in differing_parts(copy, result)


def test_volatile_fields_and_wording_are_not_differences(result, copy):
    """Times, memory, processes, and human-readable text."""
    log = copy / "run/events.jsonl"
    for key in ("time", "step_s", "tokens_per_s", "peak_memory_bytes"):
        alter_line(log, lambda event, key=key: event.update({key: 1}), kind="step")
    alter_line(log, lambda event: event.update(pid=1, host="elsewhere"), kind="start")
    alter_line(log, lambda event: event["items"][0].update(implementation="torch"), kind="kernels")
    alter_json(copy / "run/status.json", lambda status: status.update(pid=1, host="elsewhere", heartbeat=1.0))

    def elsewhere(plan: dict) -> None:
        plan["compute"]["memory_bytes"] = 1
        for choice in plan["choices"]:
            choice["reason"] = "reworded"
            if choice["key"] == "memory":
                choice["num_bytes"] = 1
            if choice["key"] == "trained weights":
                choice["value"] = "4,096 of 30,880"

    alter_json(copy / "run/plan.json", elsewhere)
    assert differing_parts(result, copy) == {}


def test_a_key_that_only_new_code_writes_is_no_difference_but_a_missing_one_is(result, copy):
    path = copy / "run/events.jsonl"
    alter_line(path, lambda event: event["gate"].update(new_measure=0.5), kind="export")
    assert differing_parts(result, copy) == {}
    assert "new_measure" in differing_parts(copy, result)["events"]


def test_part_missing_on_both_sides_is_a_difference(copy, tmp_path):
    """Otherwise a renamed directory would hide its contents."""
    for name in ("run/export", "merged", "run/ledger", "cache/index"):
        shutil.rmtree(copy / name)
    other = shutil.copytree(copy, tmp_path / "other" / copy.name)
    assert differing_parts(other, copy) == dict.fromkeys(["index", "ledger", "export"], "missing on both sides")


def test_command_that_fails_on_both_sides_is_a_difference(copy, tmp_path):
    alter_json(copy / "commands.json", lambda record: record["commands"][0].update(exit_code=2))
    (copy / "train.err").write_text("error: deepspeed is not installed\n")
    other = shutil.copytree(copy, tmp_path / "other" / copy.name)
    difference = differing_parts(other, copy)["commands"]
    assert "exited with code 2" in difference
    assert "deepspeed is not installed" in difference


@pytest.mark.parametrize(
    ("first", "second"),
    [(0.0, -0.0), (1, True), (1, 1.0), (None, 0), ([1], [1, None]), ({"a": None}, {}), (0.1 + 0.2, 0.3), ("1", 1)],
)
def test_values_of_different_type_or_sign_differ(first, second):
    assert list(differences(first, second))
    assert list(differences(second, first))


def run_tool(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=400)


@pytest.fixture
def other_code(tmp_path) -> Path:
    """A checkout whose AdamW has a larger eps, so that only numbers differ."""
    ignored = shutil.ignore_patterns(".*", "models", "runs", "docs", "tests", "benchmarks", "__pycache__", "*.egg-info")
    other = shutil.copytree(ROOT, tmp_path / "other", ignore=ignored)
    replace(other / "configs/sections/optimization.py", "eps: PositiveFloat = 1.0e-8", "eps: PositiveFloat = 1.1e-8")
    return other


def test_changed_code_is_detected_and_the_same_code_is_equal(other_code, tmp_path):
    result = run_tool(ROOT, other_code, "--recipes", "preference", "--out", tmp_path / "out")
    assert result.returncode == 1, result.stdout + result.stderr
    verdicts = {line.split()[1]: line.split(maxsplit=2)[2] for line in result.stdout.splitlines()[:-1]}
    different = {part for part, verdict in verdicts.items() if not verdict.startswith("equal")}
    assert {"plan", "losses", "evaluations", "checkpoints", "export"} <= different
    assert not {"commands", "rows", "index", "ledger", "status", "files"} & different
    assert "eps: 1e-08 != 1.1e-08" in verdicts["plan"]
    assert str(tmp_path / "out") in result.stdout.splitlines()[-1]
    same = run_tool(ROOT, ROOT, "--recipes", "preference")
    assert same.returncode == 0, same.stdout + same.stderr
    assert same.stdout.splitlines()[-1] == "equal: preference"


def test_directory_that_is_not_a_checkout_is_rejected(tmp_path):
    result = run_tool(tmp_path, ROOT)
    assert result.returncode == 1
    assert "is not a checkout" in result.stderr
