"""Runs are found by path or name, and listed with their phase."""

import json
import os

import pytest

from tunesmith.errors import InputError
from tunesmith.launcher.runs.find import BROKEN_OFF, find_folder, find_run, find_target, list_runs, phase_of


@pytest.fixture(autouse=True)
def _in_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_is_found_by_path_and_by_name(make_run, tmp_path):
    run = make_run("support-bot")
    for text in ("support-bot", "runs/support-bot", str(run.root), "runs/support-bot/"):
        assert find_run(text).root.resolve() == run.root
    (tmp_path / "support-bot").mkdir()  # a directory that is not a run is ignored
    assert find_run("support-bot").root.resolve() == run.root


def test_an_unknown_run_is_reported_with_similar_names(make_run, tmp_path):
    with pytest.raises(InputError, match="run 'support-bt' not found") as caught:
        find_run("support-bt")
    assert "tunesmith train" in (caught.value.remedy or "")
    make_run("support-bot")
    make_run("other")
    with pytest.raises(InputError) as caught:
        find_run("suport-bot")
    assert caught.value.remedy == "runs here: support-bot"
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="not a run directory: it has no plan"):
        find_run("data")


def test_a_model_is_unchanged_and_the_name_of_a_run_becomes_its_path(make_run, tmp_path):
    make_run("bot")
    assert find_target("bot") == "runs/bot"
    assert find_target("runs/bot") == "runs/bot"
    assert find_target("organisation/model") == "organisation/model"
    assert find_target("gpt2") == "gpt2"
    (tmp_path / "bot").mkdir()
    assert find_target("bot") == "bot"  # an existing path has precedence
    with pytest.raises(InputError, match="run or model 'bott' not found") as caught:
        find_target("bott")
    assert caught.value.remedy == "runs: bot"


def test_runs_are_listed_newest_first_with_phase_and_loss(make_run, tmp_path):
    make_run("old", losses=(3.0,))
    make_run("new", phase="failed", losses=(3.0, 2.5, 2.25, 2.0))
    (tmp_path / "runs" / "no-run").mkdir()
    (tmp_path / "runs" / "file").write_text("")
    rows = list_runs()
    assert [(row.name, row.phase, row.step, row.loss) for row in rows] == [
        ("new", "failed", 4, 3.25),
        ("old", "done", 1, 1.75),
    ]
    assert list_runs(tmp_path / "nowhere") == []


def test_a_run_whose_process_has_exited_is_broken_off(make_run):
    run = make_run("bot", phase="training")
    assert phase_of(run) == "training"  # by this test's own process
    status = json.loads(run.status.read_text())
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    run.status.write_text(json.dumps({**status, "pid": child}))
    assert phase_of(run) == BROKEN_OFF
    run.status.unlink()
    assert phase_of(run) == BROKEN_OFF


def test_damaged_files_do_not_hide_a_run(make_run):
    run = make_run("bot")
    run.status.write_text("{")
    run.events.write_bytes(b"\xff\xfe\x00 not json")
    (row,) = list_runs()
    assert (row.name, row.phase, row.loss) == ("bot", BROKEN_OFF, None)


def test_a_directory_of_runs_is_no_run_but_is_found(make_run, tmp_path):
    (tmp_path / "runs" / "sweep").mkdir(parents=True)
    for name, phase in (("000", "failed"), ("001", "done")):
        make_run(f"run-{name}", phase=phase).root.rename(tmp_path / "runs" / "sweep" / name)
    for text in ("sweep", "runs/sweep", str(tmp_path / "runs" / "sweep")):
        folder = find_folder(text)
        assert folder is not None
        assert folder.resolve() == tmp_path / "runs" / "sweep"
        with pytest.raises(InputError, match="not a run, but a directory of runs") as caught:
            find_run(text)
        assert "one of its 2 runs" in str(caught.value.remedy)
    assert find_folder("sweep/000") is None
    assert find_folder("nothing") is None
    (tmp_path / "empty").mkdir()
    assert find_folder("empty") is None


@pytest.mark.parametrize("name", ["n" * 256, "ü" * 128, "deep/" + "n" * 300])
def test_a_name_that_no_directory_can_have_is_rejected(name):
    for find in (find_run, find_target, find_folder):
        with pytest.raises(InputError, match="bytes long, the file system allows 255"):
            find(name)
