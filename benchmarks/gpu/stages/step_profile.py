"""One step of the 8B shape with two layers under torch's profiler: launches and where the device's time goes."""

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.stages.determinism import engine_of
from benchmarks.machine import shares


def run(setting: Setting, record: Record) -> None:
    for method in ("lora", "full"):
        engine, batch = engine_of(setting, method)
        for _ in range(2):  # compiles
            engine.train_batch(batch)
            engine.optim_step(1e-4)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.device == "cuda" else [])]
        with profile(activities=activities) as recorded:
            engine.train_batch(batch)
            engine.optim_step(1e-4)
            setting.synchronize()
        entries = recorded.key_averages()
        of_device = setting.device == "cuda"
        spent = {e.key: e.self_device_time_total if of_device else e.self_cpu_time_total for e in entries}
        launches = (
            sum(e.count for e in entries if "LaunchKernel" in e.key) if of_device else len(recorded.events() or [])
        )
        record.figure(f"{method}: launches of a step", launches)
        record.figure(f"{method}: profile", shares({key: of for key, of in spent.items() if of > 0}))
        record.check(f"{method}: device time recorded", sum(spent.values()), "at least", 1.0)
        engine.close()
        del engine
