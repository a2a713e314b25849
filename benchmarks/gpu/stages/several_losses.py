"""The losses of DDP and of ZeRO-1, 2 and 3 on several ranks equal those of one process; under ZeRO-3 the kernels that
read only their own module's weights are on."""

from benchmarks.gpu.product import kernels_of, losses, plan_of, trained_until
from benchmarks.gpu.recipes import chat_recipe
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.stages.ranks import num_ranks
from benchmarks.gpu.stages.zero import STEPS, TOLERANCE

OWN_WEIGHTS = ("rms_norm", "rope", "swiglu")


def run(setting: Setting, record: Record) -> None:
    count = num_ranks(setting)
    for method in ["full"] if setting.short else ["full", "lora"]:
        recipe = chat_recipe(setting, method)
        recipe["method"] = {**recipe["method"], **({"lora_dropout": 0.0} if method == "lora" else {})}
        recipe["optimization"] |= {"global_batch_size": 2 * count, "micro_batch_size": 1}
        alone = trained_until(setting, f"{method}-alone", recipe, STEPS, "resources.workers=1")
        tolerance = TOLERANCE[plan_of(alone)["compute"]["precision"]]
        expected = list(losses(alone).values())[:STEPS]
        fall = 1 - min(expected) / expected[0]
        record.check(f"{method}: fall of the loss with one process, relative", fall, "at least", 4 * tolerance)
        for stage in [3] if setting.short else [0, 1, 2, 3]:
            name = f"{method}, " + (f"ZeRO-{stage}" if stage else "DDP")
            overrides = (f"resources.workers={count}", f"parallelism.zero_stage={stage}")
            sharded = trained_until(setting, name.replace(", ", "-"), recipe, STEPS, *overrides)
            reached = list(losses(sharded).values())[:STEPS]
            differences = [abs(ours / plain - 1) for ours, plain in zip(reached, expected, strict=True)]
            record.check(f"{name}: relative difference of losses", max(differences), "at most", tolerance)
            record.check(f"{name}: ranks", plan_of(sharded)["compute"]["world_size"], "equals", count)
            if stage == 3:
                on, reference = kernels_of(sharded), kernels_of(alone)
                record.figure(f"{name}: kernels", on)
                same = {operation: on.get(operation) for operation in OWN_WEIGHTS}
                record.check(f"{name}: kernels", same, "equals", {o: reference.get(o) for o in OWN_WEIGHTS})
