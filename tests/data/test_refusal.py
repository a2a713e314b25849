"""Refusal codes: every refusal has a code of the list, and every code of the list is used."""

import ast
from pathlib import Path
from typing import get_args

import pytest

from tunesmith.configs.sections.data import Deidentify
from tunesmith.configs.sections.objectives import Classification
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.refusal import RefusalCode

ROOT = Path(__file__).resolve().parent.parent.parent
QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def codes_in(path: Path) -> set[str]:
    """Return the literal first arguments of all calls of Refusal in a file, and literal keyword arguments `code`."""
    codes = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refusal":
            codes |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
        if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
            codes.add(node.value.value)
    return codes


def test_the_list_has_exactly_the_codes_in_use():
    paths = [*(ROOT / "data").rglob("*.py"), ROOT / "serving" / "jobs" / "rows.py"]
    used = set().union(*map(codes_in, paths)) | {"template_failure"}
    assert used == set(get_args(RefusalCode))


LABELS = EncodingSpec("classification", 64, "error", Classification(), ("a", "b"))


@pytest.mark.parametrize(
    ("spec", "row", "code"),
    [
        (EncodingSpec("chat", 64), {"messages": []}, "no_messages"),
        (EncodingSpec("chat", 64), {"messages": [{"role": "usr", "content": "q"}, ANSWER]}, "unknown_role"),
        (EncodingSpec("chat", 64), {"messages": [QUESTION, ANSWER | {"weight": 0}]}, "not_supervised"),
        (EncodingSpec("chat", 8), {"messages": [QUESTION, ANSWER]}, "too_long"),
        (EncodingSpec("chat", 64, deidentify=Deidentify()), {"messages": [1]}, "not_an_object"),
        (EncodingSpec("preference", 64), {"prompt": "p", "chosen": "a", "rejected": "a"}, "equal_answers"),
        (EncodingSpec("preference", 16), {"prompt": "p", "chosen": "a" * 90, "rejected": "a"}, "too_long"),
        (LABELS, {"text": "x", "label": "c"}, "unknown_label"),
    ],
)
def test_a_rejected_row_has_the_matching_code(tiny, spec, row, code):
    (result,) = make_encoder(tiny, spec).encode([row])
    assert (result.outcome, result.code) == ("rejected", code)
