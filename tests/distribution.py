"""A pytest plugin: how pytest-xdist distributes the tests. A free process takes the next test, or the next group of
tests that share a fixture.

pytest-xdist's own `--dist=loadgroup` groups tests by a suffix of their node ids, which pytest 9.2 ignores: every group
falls apart without a message. Here the processes write the groups that they found when collecting into a file.
"""

import json
import os
import tempfile
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

GROUPS = "TUNESMITH_TEST_GROUPS"


class GroupScheduling(LoadScopeScheduling):
    """In the order of collection: what is slow was put first."""

    def schedule(self) -> None:
        if self.collection is None:
            self.groups: dict[str, str] = json.loads(Path(os.environ[GROUPS]).read_text(encoding="utf-8"))
            self.config.option.loadscopereorder = False
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return self.groups.get(nodeid, nodeid)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and config.getoption("dist", "no") != "no":
        file, path = tempfile.mkstemp(prefix="tunesmith-test-groups-", suffix=".json")
        os.close(file)
        os.environ[GROUPS] = path
        config.add_cleanup(lambda: Path(path).unlink(missing_ok=True))


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> GroupScheduling | None:
    """None: `--dist` names another distribution."""
    return GroupScheduling(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reports the collection and the tests are distributed
def pytest_collection_finish(session: pytest.Session) -> None:
    """In every process, each of which collects the same tests."""
    if hasattr(session.config, "workerinput") and GROUPS in os.environ:
        marks = {item.nodeid: item.get_closest_marker("xdist_group") for item in session.items}
        groups = {nodeid: mark.args[0] for nodeid, mark in marks.items() if mark is not None}
        path = Path(os.environ[GROUPS])
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(groups), encoding="utf-8")
        unfinished.replace(path)
