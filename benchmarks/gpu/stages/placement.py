"""Runs started by torchrun and by Ray: as many ranks as planned, and the losses of a run that the launcher starts."""

import importlib.util
import subprocess
import sys

from benchmarks.gpu.product import events, losses, plan_of, run_directory, trained_until, tunesmith, write_recipe
from benchmarks.gpu.recipes import chat_recipe
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.stages.ranks import num_ranks
from benchmarks.gpu.stages.zero import STEPS, TOLERANCE


def run(setting: Setting, record: Record) -> None:
    count = num_ranks(setting)
    recipe = chat_recipe(setting, "lora") | {"resources": {"workers": count}}
    recipe["optimization"] |= {"max_steps": STEPS}
    local = trained_until(setting, "placed-locally", recipe, STEPS)
    tolerance = TOLERANCE[plan_of(local)["compute"]["precision"]]
    places = {"torchrun": by_torchrun}
    if importlib.util.find_spec("ray") is None:
        record.leave_out("Ray", "needs ray, not installed")
    else:
        places["Ray"] = by_ray
    for name, start in places.items():
        run = start(setting, recipe, count)
        pairs = zip(losses(run).values(), losses(local).values(), strict=True)
        record.check(
            f"{name}: relative difference of losses", max(abs(a / b - 1) for a, b in pairs), "at most", tolerance
        )
        record.check(f"{name}: ranks", events(run, "start")[0]["world_size"], "equals", count)


def by_torchrun(setting: Setting, recipe: dict, count: int):
    from tunesmith.rundir.paths import RunDir

    run = run_directory(setting, "placed-by-torchrun")
    plan = tunesmith(setting, "plan", write_recipe(setting, "placed-by-torchrun", recipe), "--json")
    directory = RunDir(run)
    directory.create()
    directory.plan.write_text(plan, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "tunesmith.training.worker", str(run), "--attempt", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=setting.work)
    if ended.returncode != 0:
        raise RuntimeError(f"torchrun ended with exit code {ended.returncode}:\n{ended.stderr[-4000:]}")
    return run


def by_ray(setting: Setting, recipe: dict, count: int):
    run = run_directory(setting, "placed-by-ray")
    tunesmith(setting, "train", write_recipe(setting, "placed-by-ray", recipe), "--run-dir", run, "--on", "ray")
    return run
