"""Training speed and memory of the product: `tunesmith train` with a recipe, on a model of LLaMA shape.

Each function is one stage, named in acceptance.py.
"""

from typing import Any

import torch

from benchmarks.gpu.product import events, kernels_of, losses, plan_of, speed, trained_until
from benchmarks.gpu.recipes import stream_recipe
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting

STEPS = 8
PEERS = {"lora": 12473.0}
"""Published tokens per second on one H100 for LoRA on 8B: NeMo Automodel."""


def base() -> str:
    """The 8B shape, or 1B on a GPU that cannot hold it in bf16."""
    small = torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 30 << 30
    return "1B" if small else "8B"


def lora(setting: Setting, record: Record) -> None:
    measured(setting, record, base(), "lora", "27 documents")


def qlora(setting: Setting, record: Record) -> None:
    measured(setting, record, base(), "qlora", "27 documents")


def full(setting: Setting, record: Record) -> None:
    """1B, at the planner's own micro-batch: memory and speed."""
    measured(setting, record, "1B", "full", "27 documents", streams=setting.size(4, 2), own_batch=True)


def memory(setting: Setting, record: Record) -> None:
    """LoRA at the planner's own micro-batch."""
    measured(setting, record, base(), "lora", "27 documents", streams=setting.size(8, 2), own_batch=True)


def layouts(setting: Setting, record: Record) -> None:
    """The other layouts of a stream, and activation checkpointing for LoRA and QLoRA."""
    measured(setting, record, base(), "lora", "4 documents")
    measured(setting, record, base(), "lora", "1 document")
    for method in ("lora", "qlora"):
        measured(setting, record, base(), method, "27 documents", checkpointing=True)


def measured(
    setting: Setting,
    record: Record,
    shape: str,
    method: str,
    documents: str,
    *,
    streams: int = 1,
    own_batch: bool = False,
    checkpointing: bool = False,
) -> None:
    """Train some steps and record tokens/s, step time, fraction of the GEMM rate, and peak against planned memory."""
    recipe = stream_recipe(setting, shape, method, documents, steps=40, streams=streams)
    if not own_batch:
        recipe["optimization"]["micro_batch_size"] = 1
    if checkpointing:
        recipe["optimization"]["gradient_checkpointing"] = True
    name = f"{method} {shape}, {documents}" + (", checkpointing" if checkpointing else "")
    name += ", planned micro-batch" if own_batch else ""
    directory = name.replace(", ", "-").replace(" ", "-")
    run = trained_until(setting, directory, recipe, setting.size(STEPS, 4), saves=False)
    plan = plan_of(run)
    record.figure(name, {**speed(run), **context(run, plan)})
    goals(setting, record, name, shape, method, run, plan)
    sound(record, name, run)


def context(run: Any, plan: dict[str, Any]) -> dict[str, Any]:
    compute, train = plan["compute"], plan["data"]["train"]
    loading = events(run, "phase")[0]["time"]
    return {
        "loading_and_first_step_s": events(run, "step")[0]["time"] - loading,
        "planned_bytes": compute["estimated_peak_bytes"],
        "precision": compute["precision"],
        "deterministic": compute["deterministic"],
        "gradient_checkpointing": compute["gradient_checkpointing"],
        "micro_batch_size": plan["batch"]["micro_batch_size"],
        "documents_per_stream": round(train["num_rows"] / train["num_samples"], 1),
        "kernels": kernels_of(run),
    }


def goals(setting: Setting, record: Record, name: str, shape: str, method: str, run: Any, plan: dict[str, Any]) -> None:
    """Memory: the plan is an upper bound and not more than half too high. Speed: on the shapes that others publish."""
    reached = speed(run)
    share = reached["peak_bytes"] / plan["compute"]["estimated_peak_bytes"]
    record.goal(f"{name}: peak memory, relative to the plan", share, "at most", 1.0)
    if setting.rehearsal:
        return
    record.goal(f"{name}: peak memory, relative to the plan", share, "at least", 0.67)
    sizes, rates = setting.shape(shape), setting.rates
    # Forward and gradient of the inputs: 4 FLOP per weight and token; trained weights need 2 more.
    flops = (6 if method == "full" else 4) * sizes.num_matrix_weights * reached["tokens_per_s"]
    if rates:
        record.figure(f"{name}: fraction of the GEMM rate", flops / rates["gemm_flops"])
    if shape == "8B" and method in PEERS:
        record.goal(f"{name}: tokens per second", reached["tokens_per_s"], "at least", PEERS[method])


def sound(record: Record, name: str, run: Any) -> None:
    """The steps trained something: no kernel was disabled, no step skipped, the loss is finite and fell."""
    series = list(losses(run).values())
    skipped = sum(bool(event["skipped"]) for event in events(run, "step"))
    record.check(f"{name}: skipped steps", skipped, "equals", 0)
    record.check(f"{name}: relative fall of the loss", 1 - series[-1] / series[0], "at least", 0.01)
    disabled = [event["message"] for event in events(run, "warning") if event.get("code") == "kernel_off"]
    record.check(f"{name}: disabled kernels", disabled, "equals", [])
