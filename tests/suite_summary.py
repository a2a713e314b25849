"""A pytest plugin: a failed test is named at once, and the last lines of a session say what was skipped and why, and
name every rerun as a fault."""

from collections import Counter
from collections.abc import Iterator

import pytest


class FailureLines:
    """Names every failure when it happens: a session that a time limit kills writes no other word about it."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self._reporter = reporter

    @pytest.hookimpl(trylast=True)  # after the letter of its outcome
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._reporter.write_line("")
            self._reporter.write_line(f"FAILED {report.nodeid} ({report.when}): {_error(report)}")


@pytest.hookimpl(trylast=True)  # the terminal reporter is registered by then
def pytest_configure(config: pytest.Config) -> None:
    """Processes of pytest-xdist have no terminal reporter."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        config.pluginmanager.register(FailureLines(reporter), "tunesmith-failure-lines")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session):
    """After everything that pytest's own terminal reporter writes. Processes of pytest-xdist have no such reporter."""
    result = yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not session.config.option.collectonly:
        for line in closing_lines(reporter.stats):
            reporter.write_line(line)
    return result


def closing_lines(stats: dict[str, list]) -> Iterator[str]:
    """stats: reports by outcome, as the terminal reporter keeps them."""
    skipped = stats.get("skipped", [])
    reasons = Counter(_reason(report) for report in skipped)
    yield f"Skipped: {len(skipped) or 'nothing'}"
    for reason, count in reasons.most_common():
        places = sorted({report.nodeid.partition("::")[0] for report in skipped if _reason(report) == reason})
        more = f", {len(places) - 1} more" if len(places) > 1 else ""
        yield f"  {count:4d}  {reason} ({places[0]}{more})"
    reruns = stats.get("rerun", [])
    yield f"Faults: {len(reruns) or 'no'} rerun{'' if len(reruns) == 1 else 's'}"
    for report in reruns:
        allowed = dict(report.user_properties).get("rerun", "no reason")
        yield f"        {report.nodeid} failed first: {_error(report)} (may rerun: {allowed})"


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)


def _error(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash is not None else str(report.longrepr)).partition("\n")[0]
