"""The suite's own habits: no rerun without a reason, and a summary that names what was skipped or rerun."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_architecture import ROOT, parsed

MIN_REASON = 20


def marks(tree: ast.AST, name: str) -> list[ast.Attribute]:
    """Every `pytest.mark.NAME` or `mark.NAME` of a file."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == name
        and (node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")) == "mark"
    ]


def rerun_reasons(tree: ast.AST) -> list[str | None]:
    """The reason of each `rerun` mark; None where it gives none that a reader can check."""
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    reasons = []
    for mark in marks(tree, "rerun"):
        call = calls.get(id(mark))
        keywords = {keyword.arg: keyword.value for keyword in call.keywords} if call is not None else {}
        value = keywords.get("reason")
        reason = value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
        reasons.append(reason if len(reason) >= MIN_REASON and set(keywords) == {"reason"} else None)
    return reasons


def test_every_rerun_has_a_reason():
    listed = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        reasons = rerun_reasons(parsed(path))
        assert None not in reasons, f"{path}: write pytest.mark.rerun(reason='why its subject is wall-clock time')"
        if path.name != "selection.py":
            assert not marks(parsed(path), "flaky"), f"{path}: use pytest.mark.rerun(reason=...)"
        listed |= {str(path.relative_to(ROOT)): reasons} if reasons else {}
    for name, reasons in listed.items():
        print(f"{name}: {'; '.join(filter(None, reasons))}")


@pytest.mark.parametrize(
    ("mark", "reasons"),
    [
        ("pytest.mark.rerun(reason='it measures the seconds of a timeout')", ["it measures the seconds of a timeout"]),
        ("pytest.mark.rerun", [None]),
        ("mark.rerun(reason='slow')", [None]),
        ("pytest.mark.rerun('it measures the seconds of a timeout')", [None]),
    ],
)
def test_a_planted_rerun_is_found(mark, reasons):
    assert rerun_reasons(ast.parse(f"@{mark}\ndef test(): pass")) == reasons


PLANTED = """
import pathlib, pytest
from tests.selection import mark_and_order, needs

@pytest.fixture(scope="session")
@needs("cluster", group="machines")
def machine():
    yield 1
    pathlib.Path("machine-ended").touch()

@pytest.fixture(scope="module")
def shared(): return 2

def test_passes(): pass
def test_uses_a_cluster(machine): pass
def test_shares(shared): pass
def test_shares_both(shared, machine): pass
@pytest.mark.skip(reason="no such program")
@pytest.mark.parametrize("number", range(3))
def test_skips(number): pass
@pytest.mark.skip(reason="no such model")
def test_skips_too(): pass
@pytest.mark.rerun(reason="planted: fails the first time")
def test_fails_once():
    path = pathlib.Path("failed")
    if not path.exists():
        path.touch()
        raise AssertionError("too late")
"""


def run_planted(directory: Path, *arguments: str) -> list[str]:
    """The output of a pytest session over PLANTED, in a directory `tests` of its own."""
    (directory / "tests").mkdir(exist_ok=True)
    (directory / "tests" / "test_planted.py").write_text(PLANTED)
    (directory / "conftest.py").write_text(
        "import pytest\nfrom tests.selection import finish_groups, mark_and_order\n"
        "pytest_plugins = ('tests.distribution', 'tests.suite_summary')\n"
        "@pytest.hookimpl(tryfirst=True)\ndef pytest_collection_modifyitems(items):\n    mark_and_order(items)\n"
        "@pytest.hookimpl(trylast=True)\ndef pytest_runtest_teardown(item, nextitem):\n"
        "    finish_groups(item, nextitem)\n"
    )
    names = ("browser", "cluster", "rerun", "soak", "slow", "weights")
    (directory / "pytest.ini").write_text("[pytest]\nmarkers =\n" + "".join(f"    {name}\n" for name in names))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # importing all of them takes seconds
    plugins = ["-p", "xdist", "-p", "pytest_rerunfailures", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, "--import-mode=importlib", *arguments]
    ended = subprocess.run(
        command, cwd=directory, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    return (ended.stdout + ended.stderr).splitlines()


@pytest.mark.parametrize("processes", [(), ("--numprocesses=1", "--dist=loadgroup")], ids=["one", "xdist"])
def test_the_last_lines_say_what_was_skipped_and_name_reruns_as_faults(tmp_path, processes):
    lines = run_planted(tmp_path, "-q", *processes)
    result = next(number for number, line in enumerate(lines) if "passed" in line and " in " in line)
    assert lines[result + 1 :] == [
        "Skipped: 4",
        "     3  no such program (tests/test_planted.py)",
        "     1  no such model (tests/test_planted.py)",
        "Faults: 1 rerun",
        "        tests/test_planted.py::test_fails_once failed first: AssertionError: too late "
        "(may rerun: planted: fails the first time)",
    ], "\n".join(lines)


@pytest.mark.parametrize("processes", [(), ("--numprocesses=1", "--dist=loadgroup")], ids=["one", "xdist"])
def test_a_failure_is_named_when_it_happens(tmp_path, processes):
    (tmp_path / "failed").touch()  # the planted test does not fail by itself
    (tmp_path / "test_planted_failure.py").write_text("def test_fails():\n    assert not 'planted'\n")
    lines = run_planted(tmp_path, "-q", *processes)
    at_once = "FAILED test_planted_failure.py::test_fails (call): AssertionError: assert not 'planted'"
    assert at_once in lines[: next(number for number, line in enumerate(lines) if "FAILURES" in line)], lines


def test_fixtures_mark_their_tests_and_group_them(tmp_path):
    chosen = run_planted(tmp_path, "--collect-only", "-q", "-m", "cluster")
    assert chosen[:2] == ["tests/test_planted.py::test_uses_a_cluster", "tests/test_planted.py::test_shares_both"]
    assert "2/9 tests collected" in chosen[-1]


@pytest.mark.parametrize("processes", [(), ("--numprocesses=1", "--dist=loadgroup")], ids=["one", "xdist"])
def test_fixtures_of_a_group_end_after_its_last_test(tmp_path, processes):
    later = "import pathlib\ndef test_machine_has_ended(): assert pathlib.Path('machine-ended').exists()\n"
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_planted_later.py").write_text(later)
    lines = run_planted(tmp_path, "-v", *processes)
    assert any("test_machine_has_ended" in line and "PASSED" in line for line in lines), "\n".join(lines)


def test_tests_that_share_fixtures_run_in_one_process_and_others_anywhere(tmp_path):
    """Two processes: every user of a shared fixture is in the same one, as is the test that uses two of them."""
    lines = run_planted(tmp_path, "-v", "--numprocesses=2", "--dist=loadgroup")
    process_of = {words[-1].partition("::")[2]: words[0] for line in lines if (words := line.split()) and "[gw" in line}
    together = {process_of[name] for name in ("test_uses_a_cluster", "test_shares", "test_shares_both")}
    assert len(together) == 1, "\n".join(lines)
    assert len(set(process_of.values())) == 2, "\n".join(lines)
