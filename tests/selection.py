"""What a test needs, which process runs it and in which order: decided when tests are collected."""

import os
from collections.abc import Callable
from typing import TypeVar

import pytest

F = TypeVar("F", bound=Callable)

SLOW_SUITES = (
    "benchmarks/gpu",
    "training/engine",
    "slurm",
    "compatibility",
    "integration",
    "serving/jobs",
    "serving/conformance",
    "serving/page",
    "launcher",
    "serving",
)
"""Folders of tests/ whose tests take longest, the slowest first. They run first, so that only short tests are left at
the end and no process waits long for the last test of another."""

LIVE = pytest.StashKey[dict[str, pytest.FixtureDef]]()
"""Fixtures of groups, by group, that have not ended."""

WHOLE_RUNS = (
    "compatibility/",
    "evaluation/test_job",
    "integration/",
    "launcher/runs/test_start",
    "launcher/test_toy_cluster",
    "serving/conformance/",
    "serving/engine/",
    "serving/jobs/",
    "serving/openai_import/",
    "serving/page/",
    "tools/test_compare_checkouts",
    "training/distributed/test_preflight",
    "training/engine/",
    "training/test_finishing",
)
"""Tests that start whole runs, several ranks or whole servers: they are marked slow, and `make test-quick` leaves them
out."""


def needs(*marks: str, group: str | None = None) -> Callable[[F], F]:
    """For a fixture, below `@pytest.fixture`: the tests that use it get these marks; with `group` they run in one
    process, so that an expensive fixture of a session is created once."""

    def declare(fixture: F) -> F:
        fixture.__dict__["needs"] = marks
        fixture.__dict__["group"] = group
        return fixture

    return declare


def mark_and_order(items: list[pytest.Item]) -> None:
    """Mark every test by the fixtures that it uses, group the tests that share one, and put slow suites first.

    With `--dist=loadgroup` a test without a group runs in whichever process is free. Tests of a file that use a
    fixture of module scope are a group, so that the fixture is not created in two processes.
    """
    shared = [_shared(item) for item in items]
    groups = _components(shared)
    for item, names in zip(items, shared, strict=True):
        for fixture in _fixtures(item):
            for mark in getattr(fixture.func, "needs", ()):
                item.add_marker(mark)
        if _place(item).startswith(WHOLE_RUNS):
            item.add_marker("slow")
        if names:
            item.add_marker(pytest.mark.xdist_group(groups[names[0]]))
        if item.get_closest_marker("soak") and not os.environ.get("TUNESMITH_SOAK"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: `make soak` runs it"))
        if (rerun := item.get_closest_marker("rerun")) is not None:
            item.add_marker(pytest.mark.flaky(reruns=1))
            item.user_properties.append(("rerun", rerun.kwargs["reason"]))
    items.sort(key=_rank)


def finish_groups(item: pytest.Item, following: pytest.Item | None) -> None:
    """End the fixtures of a group after its last test: clusters, servers and browsers take CPU time while they wait.

    following: the next test of this process. Tests of a group run one after another in processes of pytest-xdist;
    otherwise a fixture may be created again for another file.
    """
    live = item.session.stash.setdefault(LIVE, {})
    live |= _groups(item)
    if following is not None and following.path == item.path:
        return
    kept = _groups(following) if following is not None else {}
    for group in live.keys() - kept.keys():
        live.pop(group).finish(item._request)  # type: ignore[attr-defined]


def _groups(item: pytest.Item) -> dict[str, pytest.FixtureDef]:
    """The fixtures of an item that have a group, by group."""
    return {
        group: fixture for fixture in _fixtures(item) if (group := getattr(fixture.func, "group", None)) is not None
    }


def _shared(item: pytest.Item) -> list[str]:
    """Names of what a test shares with others: groups of its fixtures, and its file where a fixture belongs to that."""
    names = set()
    for fixture in _fixtures(item):
        if (group := getattr(fixture.func, "group", None)) is not None:
            names.add(group)
        elif fixture.scope in ("class", "module"):
            names.add(_place(item))
    return sorted(names)


def _components(shared: list[list[str]]) -> dict[str, str]:
    """name -> its group. Names that one test has together are one group, with all that hang together with them."""
    group_of = {name: name for names in shared for name in names}
    for names in shared:
        for name in names[1:]:
            old, new = group_of[name], group_of[names[0]]
            group_of |= {other: new for other, group in group_of.items() if group == old}
    return group_of


def _fixtures(item: pytest.Item) -> list[pytest.FixtureDef]:
    info = getattr(item, "_fixtureinfo", None)  # None: an item that is no function
    return [definitions[-1] for definitions in info.name2fixturedefs.values()] if info is not None else []


def _place(item: pytest.Item) -> str:
    """The test's file below tests/, without its suffix."""
    path = item.path.with_suffix("").as_posix()
    return path.rpartition("/tests/")[2]


def _rank(item: pytest.Item) -> int:
    place = _place(item)
    ranks = (rank for rank, suite in enumerate(SLOW_SUITES) if place.startswith(f"{suite}/"))
    return next(ranks, len(SLOW_SUITES))
