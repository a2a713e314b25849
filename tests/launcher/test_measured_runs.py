"""What earlier runs on this machine needed is kept by kind, and shown by later plans without changing them."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from tests.event_lines import an_event
from tests.launcher.planning.test_planner import CPU
from tunesmith.launcher.measured_runs import earlier_runs_like, record_measured
from tunesmith.launcher.planning.plan_table import show_plan
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.product_rates import ProductRates
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.paths import RunDir


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def a_plan(a_recipe, a_model, some_data):
    hardware = replace(CPU, product_rates=ProductRates(60.0, 0.0))
    return lambda *overrides: make_plan(a_recipe(*overrides), a_model(), some_data(), hardware)


@pytest.fixture
def a_run(tmp_path):
    """a_run(peak bytes, seconds of a step): with four steps, of which the first took ten times as long."""

    def make(peak: int | None, step_s: float) -> RunDir:
        run = RunDir(tmp_path / "run")
        run.root.mkdir(exist_ok=True)
        run.events.unlink(missing_ok=True)
        log = EventLog(run.events)
        for step in range(1, 5):
            seconds = step_s * (10 if step == 1 else 1)
            log.write(an_event("step", step=step, step_s=seconds, peak_memory_bytes=peak))
        log.close()
        return run

    return make


def test_later_plans_of_the_same_kind_know_the_ratio(a_plan, a_run):
    plan = a_plan()
    assert earlier_runs_like(plan) is None
    peak, seconds = plan.compute.estimated_peak_bytes, plan.compute.estimated_step_s or 0
    for ratio in (0.8, 0.9, 1.4):
        record_measured(a_run(round(ratio * peak), 2 * ratio * seconds), plan)
    known = earlier_runs_like(a_plan("optimization.epochs=3"))
    assert known is not None
    assert known.num_runs == 3
    assert known.memory == pytest.approx(0.9, rel=1e-6)
    assert known.time == pytest.approx(1.8, rel=1e-6)
    assert earlier_runs_like(a_plan("method.kind=full")) is None
    assert a_plan() == plan


def test_the_table_shows_what_to_expect(a_plan, a_run):
    plan = a_plan()
    record_measured(a_run(2 * plan.compute.estimated_peak_bytes, 1.0), plan)
    stream = io.StringIO()
    show_plan(plan, Console(file=stream, width=160), earlier_runs_like(plan))
    (line,) = (line for line in stream.getvalue().splitlines() if line.startswith("measured memory"))
    assert "1 earlier run like this on this machine: 2.00 of the estimate" in line
    assert "a step takes 1.0 s" in stream.getvalue()


def test_runs_without_measurements_and_damaged_lines_do_not_count(a_plan, a_run, cache):
    plan = a_plan()
    record_measured(a_run(None, 1.0), plan)
    assert earlier_runs_like(plan) is None
    record_measured(a_run(plan.compute.estimated_peak_bytes, 1.0), plan)
    (file,) = (cache / "measured-runs").iterdir()
    with open(file, "a") as lines:
        lines.write('{"peak_bytes": "many"}\n[1]\n{"peak_by')
    known = earlier_runs_like(plan)
    assert known is not None
    assert known.memory == pytest.approx(1.0)


def test_a_cache_that_cannot_be_written_is_no_error(a_plan, a_run, cache):
    cache.write_text("a file")
    record_measured(a_run(1 << 30, 1.0), a_plan())
    assert earlier_runs_like(a_plan()) is None
