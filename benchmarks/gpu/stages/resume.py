"""A run killed with SIGKILL and resumed equals an uninterrupted one in every bit of losses and weights."""

from benchmarks.gpu.product import kernels_of, losses, plan_of, run_directory, trained, tunesmith, weights, write_recipe
from benchmarks.gpu.recipes import METHODS, chat_recipe
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting

KILLED_AT = 5


def run(setting: Setting, record: Record) -> None:
    for method in ["lora"] if setting.short else list(METHODS):
        recipe = chat_recipe(setting, method)
        whole = trained(setting, f"whole-{method}", recipe)
        killed = run_directory(setting, f"killed-{method}")
        command = ("train", write_recipe(setting, f"killed-{method}", recipe), "--run-dir", killed)
        tunesmith(setting, *command, faults=f"step.update:{KILLED_AT}=kill", expected=1)
        tunesmith(setting, "resume", killed)
        mode = plan_of(whole)["compute"]["deterministic"]
        record.figure(f"{method}: deterministic", mode)
        record.figure(f"{method}: kernels", kernels_of(whole))
        record.check(f"{method}: steps", len(losses(whole)), "at least", KILLED_AT + 2)
        record.check(f"{method}: losses, bitwise", losses(killed) == losses(whole), "equals", True)
        record.check(
            f"{method}: weights and optimizer state, bitwise", weights(killed) == weights(whole), "equals", True
        )
        record.check(f"{method}: files compared", len(weights(whole)), "at least", 2)
        if not setting.short:
            tunesmith(setting, "prove", killed)
            record.figure(f"{method}: proofs", "hold")
