"""debian_packages.sh waits for the locks of other package managers.

Uses the real apt-get with its files in a temporary directory and no package sources.
"""

import fcntl
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "debian_packages.sh"
LOCKS = ("state/lists/lock", "dpkg/lock-frontend", "dpkg/lock")

pytestmark = [
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not installed (Debian and Ubuntu have it)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the script installs packages as root only"),
]


@pytest.fixture
def apt(tmp_path) -> dict[str, str]:
    """Environment of an apt-get without packages, with a PATH that lacks the programs of the tests."""
    for directory in ("state/lists/partial", "cache/archives/partial", "dpkg", "bin"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "dpkg" / "status").touch()
    settings = {
        "Dir::State": tmp_path / "state",
        "Dir::State::status": tmp_path / "dpkg" / "status",
        "Dir::Cache": tmp_path / "cache",
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": "/dev/null",
    }
    config = tmp_path / "apt.conf"
    config.write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
    for program in ("sh", "apt-get", "date", "grep", "id", "mktemp", "rm", "sleep", "tail"):
        (tmp_path / "bin" / program).symlink_to(shutil.which(program) or program)
    return {"PATH": str(tmp_path / "bin"), "APT_CONFIG": str(config), "HOME": str(tmp_path)}


def run(environment: dict[str, str], **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(["sh", SCRIPT], env={**environment, **more}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("lock", LOCKS)
def test_script_waits_for_a_lock_and_then_installs(apt, tmp_path, lock):
    """Once the lock is released, the installation fails for lack of packages, and the log shows this."""
    released = []
    with open(tmp_path / lock, "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)

        def release() -> None:
            time.sleep(3)
            released.append(time.monotonic())
            fcntl.lockf(file, fcntl.LOCK_UN)

        thread = threading.Thread(target=release)
        thread.start()
        result = run(apt)
        returned = time.monotonic()
        thread.join()
    assert released[0] < returned
    assert result.returncode == 0
    assert "Unable to locate package" in result.stderr
    assert "tests that need them will be skipped" in result.stderr
    assert "Could not get lock" not in result.stderr.replace("Waiting for cache lock: Could not get lock", "")


def test_lock_that_is_not_released_is_reported_after_the_time_limit(apt, tmp_path):
    with open(tmp_path / LOCKS[0], "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        result = run(apt, LOCK_TIMEOUT_S="2")
    assert result.returncode == 0
    assert "Waiting for another package manager to finish (up to 2 s)" in result.stdout
    assert "Could not get lock" in result.stderr
