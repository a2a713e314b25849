"""Problems are detected before the first process starts."""

import shutil
from pathlib import Path

import pytest

from tunesmith.errors import InputError
from tunesmith.launcher.backends.local import Local
from tunesmith.launcher.hardware import Gpu, Hardware
from tunesmith.launcher.planning.disk import disk_need
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.runs.launch_checks import require_device, require_disk, require_usable
from tunesmith.rundir.lock import run_lock
from tunesmith.rundir.paths import RunDir

HARDWARE = Hardware(2, "", 1 << 40, "", frozenset())


def test_disk_space_counts_the_checkpoints_that_exist_at_a_time(a_recipe, a_model, some_data):
    """Three that are kept and the one being written, and the best if it is kept; never more than the run writes."""

    def num_checkpoints(*overrides: str) -> int:
        return disk_need(make_plan(a_recipe(*overrides), a_model(), some_data(800), HARDWARE))[1]

    assert num_checkpoints("checkpoint.every_steps=10") == 4
    assert num_checkpoints("checkpoint.every_steps=10", "evaluation.early_stopping={}") == 5
    assert num_checkpoints("checkpoint.every_steps=10", "checkpoint.keep_last=90") == 11
    assert num_checkpoints() == 2
    plan = make_plan(a_recipe("export.form=merged"), a_model(), some_data(800), HARDWARE)
    need, _ = disk_need(plan)
    assert need > 2 * plan.compute.checkpoint_bytes + 4 * plan.model.num_params


def test_a_run_that_would_fill_the_disk_is_rejected_with_numbers(a_recipe, a_model, some_data, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    fits = make_plan(a_recipe(), a_model(num_trained_params=1000), some_data(), HARDWARE)
    require_disk(fits, tmp_path / "not" / "there" / "yet")
    huge = a_model(num_trained_params=free // 12, num_params=free // 12)
    plan = make_plan(a_recipe("method.kind=full"), huge, some_data(), Hardware(2, "", 1 << 60, "", frozenset()))
    with pytest.raises(
        InputError, match=r"needs about [\d.]+ [GT]iB of disk space, but [\d.]+ [GT]iB are free"
    ) as caught:
        require_disk(plan, tmp_path / "not" / "there" / "yet")
    assert str(tmp_path) in (caught.value.where or "")
    assert "keep_last" in (caught.value.remedy or "")


def test_a_run_directory_that_is_a_file_or_contains_other_files_is_rejected(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "inside" / "deep"):
        with pytest.raises(InputError, match="is a file"):
            require_usable(RunDir(place))
    (tmp_path / "home" / "thesis").mkdir(parents=True)
    with pytest.raises(InputError, match="contains other files, such as thesis"):
        require_usable(RunDir(tmp_path / "home"))


def test_a_new_or_empty_directory_or_that_of_a_run_is_accepted(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "new" / "deep", tmp_path / "empty"):
        require_usable(RunDir(place))
    run = RunDir(tmp_path / "run")
    run.create()
    run.lock.write_text("1")
    run.status.write_text("{}")
    require_usable(run)
    assert not (tmp_path / "new").exists()


def test_a_directory_that_is_not_writable_is_rejected():
    """Root can write everywhere except in a file system that does not allow new directories."""
    place = RunDir(Path("/proc/tunesmith/run"))
    with pytest.raises(InputError, match=r"not writable|cannot be (created|locked)"):
        _use(place)


def _use(run: RunDir) -> None:
    require_usable(run)
    with run_lock(run):
        run.create()


def test_a_plan_for_a_gpu_is_rejected_without_a_gpu(a_recipe, a_model, some_data, monkeypatch):
    gpu = Hardware(2, "", 1 << 40, "", frozenset(), (Gpu("GPU", 80 << 30, 80 << 30, (9, 0)),), True)
    plan = make_plan(a_recipe(), a_model(), some_data(), gpu)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="planned for a GPU, but no GPU is visible"):
        require_device(plan, Local())
    require_device(make_plan(a_recipe(), a_model(), some_data(), HARDWARE), Local())
