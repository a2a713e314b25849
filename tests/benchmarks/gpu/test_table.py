"""docs/gpu.md says what the results files give, and the README the same in a sentence."""

import json
import re

import pytest

from benchmarks.gpu import table
from benchmarks.gpu.acceptance import STAGES as ONE
from benchmarks.gpu.several import STAGES as SEVERAL


def test_the_page_says_what_the_results_of_the_repository_give():
    page = table.PAGE.read_text(encoding="utf-8")
    assert page == table.replaced(page, table.committed()), "run `python benchmarks/gpu/acceptance.py --table`"


def test_the_readme_says_the_same():
    text = re.sub(r"\s+", " ", (table.ROOT / "README.md").read_text(encoding="utf-8"))
    results = [one for one in map(table.read, table.committed()) if one is not None]
    assert ("has not run on a GPU yet" in text) == (not results)
    assert all(table.gpu_of(one) in text for one in results)


def test_every_row_names_stages_and_every_stage_that_verifies_something_has_a_row():
    named = {(row.script, stage) for row in table.ROWS for stage in row.stages}
    stages = {(table.ONE, stage.name) for stage in ONE} | {(table.SEVERAL, stage.name) for stage in SEVERAL}
    assert named <= stages
    assert stages - named == {(table.ONE, "machine"), (table.ONE, "step-profile")}


@pytest.fixture
def results(tmp_path):
    """results(name, started, gpu, stages, script=..., rehearsal=...) -> path of a results file."""

    def write(name, started, gpu, stages, script=table.ONE, rehearsal=False):
        first = {"status": "passed", "figures": {"gpu": gpu, "versions": {"torch": "2.11.0", "driver": "580"}}}
        content = {"schema": 1, "script": script, "rehearsal": rehearsal, "started": started, "commit": "abc1234"}
        content["stages"] = {"machine" if script == table.ONE else "ranks": first, **stages}
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return write


def cells(page: str) -> dict[str, str]:
    """Row -> cell `on a GPU`."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {row[0]: row[2] for row in rows}


PASSED = {"status": "passed"}
PAGE = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
RESUME, TIMINGS, KERNELS, LORA = (
    next(row.what for row in table.ROWS if row.script == table.ONE and stage in row.stages)
    for stage in ("resume", "timings", "kernel-tests", "lora")
)


def test_results_fill_the_table(results):
    goals = {"status": "passed", "goals": [{"holds": True}, {"holds": False}, {"holds": True}]}
    first = results("gpu-a.json", "2026-12-01", "NVIDIA H200", {"resume": PASSED, "timings": goals, "lora": PASSED})
    page = table.replaced(PAGE, [first])
    assert page.startswith("before\n")
    assert page.endswith(f"{table.END}\nafter\n")
    assert "old" not in page
    assert "Verified on: NVIDIA H200." in page
    assert table.NOTHING not in page
    shown = cells(page)
    assert shown[RESUME] == "NVIDIA H200"
    assert shown[TIMINGS] == "NVIDIA H200, 2 of 3 goals met"
    assert shown[LORA] == table.NOT_YET, "QLoRA of the same row did not run"
    assert "commit abc1234, torch 2.11.0, driver 580, `benchmarks/results/gpu-a.json`" in page


def test_failures_and_newer_results_are_shown(results):
    bad = {"status": "timed out", "reason": "did not end"}
    old = results("gpu-a.json", "2026-12-01", "NVIDIA H200", {"resume": bad, "kernel-tests": bad})
    other = results("gpu-b.json", "2026-12-02", "NVIDIA L4", {"resume": PASSED})
    new = results("gpu-c.json", "2026-12-03", "NVIDIA H200", {"resume": PASSED, "timings": {"status": "skipped"}})
    shown = cells(table.replaced(PAGE, [new, old, other]))
    assert shown[RESUME] == "NVIDIA L4; NVIDIA H200"
    assert shown[KERNELS] == "timed out on NVIDIA H200"
    assert shown[TIMINGS] == table.NOT_YET


def test_a_rehearsal_verifies_nothing(results):
    rehearsal = results("gpu-r.json", "2026-12-01", "none (rehearsal)", {"resume": PASSED}, rehearsal=True)
    page = table.replaced(PAGE, [rehearsal])
    assert table.NOTHING in page
    assert set(cells(page).values()) == {"on a GPU", table.NOT_YET}


def test_results_of_several_gpus_fill_their_own_rows(results):
    several = results("gpu-s.json", "2026-12-01", "2 x NVIDIA H200", {"resume": PASSED}, script=table.SEVERAL)
    shown = cells(table.replaced(PAGE, [several]))
    assert shown[RESUME] == table.NOT_YET, "the stage of the same name of the other script"
    assert shown[next(row.what for row in table.ROWS if row.stages == ("resume",) and row.script == table.SEVERAL)] == (
        "2 x NVIDIA H200"
    )


def test_a_page_without_markers_is_an_error():
    with pytest.raises(ValueError, match="once each"):
        table.replaced("no markers", [])
