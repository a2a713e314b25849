"""Renamed and moved tests are found again, and missing ones are visible."""

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "map_tests.py"
SUM = "def {}():\n    values = [1, 2, 3]\n    assert sum(values) == 6\n    assert max(values) == 3\n"
TEXT = "def {}(tmp_path):\n    path = tmp_path / 'a'\n    path.write_text('x')\n    assert path.read_text() == 'x'\n"
RAISES = "def {}():\n    with pytest.raises(ZeroDivisionError):\n        print(1 / 0)\n"


def commit(repository: Path, **files: str) -> str:
    for old in (repository / "tests").glob("*.py"):
        old.unlink()
    (repository / "tests").mkdir(exist_ok=True)
    for name, text in files.items():
        (repository / "tests" / f"{name}.py").write_text(text)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "--allow-empty", "-m", "tests"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_moved_test_is_paired_and_a_deleted_one_stands_out(tmp_path):
    base = commit(tmp_path, test_all=SUM.format("test_sum") + TEXT.format("test_text") + RAISES.format("test_raises"))
    commit(tmp_path, test_a=TEXT.format("test_written_text_is_read"), test_b=SUM.format("test_totals"))
    output = subprocess.run(
        [sys.executable, str(TOOL), base], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    lines = {line.split()[4].partition("::")[2]: line.split() for line in output.splitlines()}
    assert lines["test_sum"][1:4] == ["2", "->", "2"]
    assert lines["test_sum"][5] == "tests/test_b.py::test_totals"
    assert lines["test_text"][5] == "tests/test_a.py::test_written_text_is_read"
    assert min(float(lines[name][0]) for name in ("test_sum", "test_text")) > 0.9
    assert float(lines["test_raises"][0]) < 0.5
