"""A ZeRO-3 run on several ranks, killed and resumed, equals an uninterrupted one in every bit."""

from benchmarks.gpu.product import losses, run_directory, trained, tunesmith, weights, write_recipe
from benchmarks.gpu.recipes import chat_recipe
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.stages.ranks import num_ranks

KILLED_AT = 5


def run(setting: Setting, record: Record) -> None:
    recipe = chat_recipe(setting, "full") | {
        "resources": {"workers": num_ranks(setting), "max_restarts": 0},
        "parallelism": {"zero_stage": 3},
    }
    whole = trained(setting, "sharded-whole", recipe)
    killed = run_directory(setting, "sharded-killed")
    command = ("train", write_recipe(setting, "sharded-killed", recipe), "--run-dir", killed)
    tunesmith(setting, *command, faults=f"step.update:{KILLED_AT}=kill", expected=1)
    record.check("steps before the kill", max(losses(killed), default=0), "at most", KILLED_AT - 1)
    tunesmith(setting, "resume", killed)
    record.check("steps", len(losses(whole)), "at least", KILLED_AT + 2)
    record.check("losses, bitwise", losses(killed) == losses(whole), "equals", True)
    record.check("weights and optimizer state, bitwise", weights(killed) == weights(whole), "equals", True)
