"""The table of docs/gpu.md: what has been verified on which GPU, from results files of acceptance.py and several.py."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.running import PASSED, SKIPPED, read_results

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "gpu.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- verified: begin -->", "<!-- verified: end -->"
NOTHING = "**Nothing on this page has run on a GPU yet.**"
NOT_YET, GPU_ONLY = "not yet", "–"


@dataclass(frozen=True)
class Row:
    """A line of the table. elsewhere: how it is tested without a GPU. stages: of the script that verify it."""

    what: str
    elsewhere: str
    script: str
    stages: tuple[str, ...]


ONE, SEVERAL = "gpu-one", "gpu-several"
ROWS = (
    Row("Triton kernels: values and gradients", "interpreter; compiled for sm_75 to sm_120", ONE,
        ("kernel-tests", "kernel-shapes")),
    Row("no races, no accesses outside of memory", GPU_ONLY, ONE, ("sanitizer",)),
    Row("variable-length attention: error, windows, grouped heads", "CPU, with a stand-in for torch's two operators",
        ONE, ("attention",)),
    Row("a step and the reported loss are bitwise reproducible", "CPU", ONE, ("determinism",)),
    Row("LoRA and QLoRA of an 8B model: training, speed, memory", "CPU, tiny sizes", ONE, ("lora", "qlora")),
    Row("full fine-tuning of a 1B model", "CPU, tiny sizes", ONE, ("full",)),
    Row("kill -9 and resume, bitwise: LoRA, QLoRA, full", "CPU", ONE, ("resume",)),
    Row("sample answers, evaluation, chat, export with its gate", "CPU", ONE, ("evaluate",)),
    Row("planned memory against the peak, at the planned micro-batch", "CPU, tiny sizes", ONE, ("memory", "full")),
    Row("time of each kernel against its goal", GPU_ONLY, ONE, ("timings",)),
    Row("compared with eager torch, torch.compile and Liger", GPU_ONLY, ONE, ("compared",)),
    Row("long documents, activation checkpointing", "CPU, tiny sizes", ONE, ("layouts",)),
    Row("ZeRO-2 and ZeRO-3 with one rank", "CPU (gloo)", ONE, ("zero",)),
    Row("several ranks: collectives, kernels on every device", "CPU (gloo)", SEVERAL, ("ranks",)),
    Row("DDP, ZeRO-1, 2 and 3: losses equal one process; kernels under ZeRO-3", "CPU (gloo)", SEVERAL, ("losses",)),
    Row("sharded run: kill -9 and resume, bitwise", "CPU (gloo)", SEVERAL, ("resume",)),
    Row("a hang is reported with rank, stage and collective", "CPU (gloo)", SEVERAL, ("hang",)),
    Row("start by torchrun and by Ray", "CPU (gloo)", SEVERAL, ("placement",)),
)  # fmt: skip


def committed() -> list[Path]:
    """The results files of the repository."""
    return sorted(RESULTS.glob("gpu-*.json"))


def write(files: Sequence[Path]) -> None:
    """Replace the part of docs/gpu.md between the markers."""
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), files), encoding="utf-8")


def replaced(page: str, files: Sequence[Path]) -> str:
    """Return the page with the table of these results. ValueError if it does not have both markers once."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{PAGE} needs {BEGIN} and {END} once each")
    before, _, rest = page.partition(BEGIN)
    return (
        before
        + BEGIN
        + "\n"
        + section([results for file in files if (results := read(file))])
        + END
        + rest.partition(END)[2]
    )


def read(file: Path) -> dict[str, Any] | None:
    """Return the results of a file with its name; None for a rehearsal, which verifies nothing on a GPU."""
    results = read_results(file)
    return None if results["rehearsal"] else {**results, "file": file.name}


def section(results: Sequence[dict[str, Any]]) -> str:
    """The generated part: a sentence, the table, and the machines."""
    ordered = sorted(results, key=lambda one: one["started"])
    names = list(dict.fromkeys(gpu_of(one) for one in ordered))
    sentence = (
        f"Verified on: {', '.join(names)}. Everything else on this page has not run on a GPU." if names else NOTHING
    )
    lines = [sentence, "", "| what | without a GPU | on a GPU |", "|---|---|---|"]
    lines += [f"| {row.what} | {row.elsewhere} | {cell(row, ordered)} |" for row in ROWS]
    lines += ["", *(machine(one) for one in ordered), *([""] if ordered else [])]
    return "\n".join(lines)


def cell(row: Row, results: Sequence[dict[str, Any]]) -> str:
    """What each GPU showed, the newest result of each; "not yet" if none ran the row's stages."""
    shown: dict[str, str] = {}
    for one in results:
        if one.get("script") == row.script and (outcome := outcome_of(row, one)) is not None:
            shown.pop(gpu_of(one), None)
            shown[gpu_of(one)] = outcome
    return "; ".join(shown.values()) or NOT_YET


def outcome_of(row: Row, results: dict[str, Any]) -> str | None:
    """The outcome of a row's stages on one GPU; None if not all of them ran."""
    gpu, stages = gpu_of(results), [results["stages"].get(name) for name in row.stages]
    ran = [stage for stage in stages if stage is not None and stage["status"] not in (SKIPPED, "not run")]
    bad = [stage for stage in ran if stage["status"] != PASSED]
    if bad:
        return f"{bad[0]['status']} on {gpu}"
    if len(ran) < len(stages):
        return None
    goals = [goal for stage in ran for goal in stage.get("goals", ())]
    met = sum(goal["holds"] for goal in goals)
    return f"{gpu}, {met} of {len(goals)} goals met" if goals else gpu


def gpu_of(results: dict[str, Any]) -> str:
    """Name and number of the GPUs, as the first stage recorded them."""
    for name in ("machine", "ranks"):
        gpu = results["stages"].get(name, {}).get("figures", {}).get("gpu")
        if gpu:
            return re.sub(r"[|\n]", " ", str(gpu))
    return "an unknown GPU"


def machine(results: dict[str, Any]) -> str:
    versions = next(
        (s["figures"]["versions"] for s in results["stages"].values() if "versions" in s.get("figures", {})), {}
    )
    known = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "driver") if name in versions)
    about = [results["started"], f"commit {results['commit']}", known, f"`benchmarks/results/{results['file']}`"]
    return f"- {gpu_of(results)}: {', '.join(filter(None, about))}"
