"""Files that are replaced atomically."""

import errno
import os
import subprocess
import sys

import pytest

from tunesmith.rundir import atomic


def test_content_is_replaced_and_parents_are_created(tmp_path):
    path = tmp_path / "a" / "b.json"
    atomic.write_json(path, {"ü": [1]})
    atomic.write_json(path, {"ü": [2]})
    assert path.read_text(encoding="utf-8") == '{\n  "ü": [\n    2\n  ]\n}\n'
    assert os.listdir(path.parent) == ["b.json"]


def test_a_failed_write_keeps_the_old_content_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "x"
    atomic.write_text(path, "old")
    # a real error from the kernel: files may not grow beyond 1000 bytes
    script = """
import resource, sys
from pathlib import Path
from tunesmith.rundir import atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic.write_bytes(Path(sys.argv[1]), b"n" * 5000)
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == errno.EFBIG
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_replacing_a_directory_raises(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError):
        atomic.write_text(tmp_path / "x", "new")
    assert os.listdir(tmp_path) == ["x"]
