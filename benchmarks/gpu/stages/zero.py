"""ZeRO-2 and ZeRO-3 with one rank, over the same back end as with several: losses equal those of the plain engine."""

from benchmarks.gpu.product import kernels_of, losses, plan_of, trained_until
from benchmarks.gpu.recipes import chat_recipe
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting

STEPS = 4
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-3, "fp16": 1e-3}
"""Relative difference of losses. fp32: sums in another order. bf16 and fp16: products round by 2^-9 and 2^-12, under
ZeRO-3 fewer of them fused; a loss averages over hundreds of tokens."""


def run(setting: Setting, record: Record) -> None:
    recipe = chat_recipe(setting, "lora")
    recipe["method"] = {**recipe["method"], "lora_dropout": 0.0}  # random numbers differ between engines
    plain = trained_until(setting, "zero-0", recipe, STEPS, "parallelism.zero_stage=0")
    tolerance = TOLERANCE[plan_of(plain)["compute"]["precision"]]
    expected = list(losses(plain).values())[:STEPS]
    record.check("fall of the plain run's loss, relative", 1 - min(expected) / expected[0], "at least", 4 * tolerance)
    for stage in [3] if setting.short else [2, 3]:
        sharded = trained_until(setting, f"zero-{stage}", recipe, STEPS, f"parallelism.zero_stage={stage}")
        reached = list(losses(sharded).values())[:STEPS]
        differences = [abs(ours / of_plain - 1) for ours, of_plain in zip(reached, expected, strict=True)]
        record.check(f"ZeRO-{stage}: relative difference of losses", max(differences), "at most", tolerance)
        record.figure(f"ZeRO-{stage}: kernels", kernels_of(sharded))
