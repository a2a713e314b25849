"""Code, output and docs use the terms of the field; tools/check_wording.py lists the others."""

import subprocess
import sys

import pytest

from tests.test_architecture import ROOT
from tools.check_wording import findings


def test_the_tree_uses_the_terms_of_the_field():
    command = [sys.executable, ROOT / "tools" / "check_wording.py"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("path", "line", "term"),
    [
        ("data/a.py", "# what became of the rows", "row outcomes"),
        ("docs/a.md", "The run is gone on with.", "continues"),
        ("data/a.py", "rows_told = 3", "reported"),
        ("data/a.py", "found = read(path)", "a value is called 'found'"),
    ],
)
def test_a_planted_term_is_found(path, line, term):
    (finding,) = findings(path, f"\n{line}\n")
    assert finding.startswith(f"{path}:2: ")
    assert term in finding


@pytest.mark.parametrize("line", ["the threads that were untold", "value = unfounded", "goes beyond"])
def test_similar_words_pass(line):
    assert findings("data/a.py", line) == []
