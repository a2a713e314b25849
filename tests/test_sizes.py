"""Limits of files and functions, so that a growing one is cut at its seam. Exceptions are listed with their reason."""

import ast
from pathlib import Path

import pytest

from tests.test_architecture import ROOT, parsed, product_files

FILE_LINES = 350
FUNCTION_LINES = 75
# Arguments, statements and complexity are limits of ruff's (pyproject.toml).
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS = {
    "cli/evaluate.py evaluate": "a Typer command: its options are its parameters",
    "serving/store/migrations/versions/first_tables.py upgrade": "a migration lists its tables",
}


def long_functions(path: Path, tree: ast.Module) -> set[str]:
    functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return {f"{path} {node.name}" for node in functions if (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES}


def test_files_are_short():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in product_files()
    }
    assert {name for name, lines in lengths.items() if lines > FILE_LINES} == LONG_FILES.keys()


def test_functions_are_short():
    names = set().union(*(long_functions(path.relative_to(ROOT), parsed(path)) for path in product_files()))
    assert names == LONG_FUNCTIONS.keys()


@pytest.mark.parametrize(("lines", "is_long"), [(74, False), (75, True)])
def test_a_planted_long_function_is_found(lines, is_long):
    tree = ast.parse("def f():\n" + "    pass\n" * lines)
    assert bool(long_functions(Path("a.py"), tree)) is is_long
