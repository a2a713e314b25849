"""Performance goals on a machine without a GPU: quantity, result file and command."""

from dataclasses import dataclass
from typing import Literal

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Goal:
    """One ratio, or a number with a unit. file, keys: its location in benchmarks/results/."""

    what: str
    sense: Literal["at least", "at most"]
    goal: float
    file: str
    keys: Keys
    command: str
    unit: str = ""

    def holds(self, measured: float) -> bool:
        return measured >= self.goal if self.sense == "at least" else measured <= self.goal


TRAIN = "train.py --add --steps 3 --rounds 7 --only"
ENTRANTS = {
    "trl": ("trl as documented", 1.5),
    "llamafactory": ("LLaMA-Factory with neat packing, otherwise defaults", 1.5),
    "trl_tuned": ("trl tuned by hand (packing, no gradient checkpointing)", 1.15),
    "bare_unpadded": ("a plain torch and peft loop without padding", 1.05),
}
METHODS = {"LoRA": ("train", ""), "Full fine-tuning": ("train-full", " --method full")}


def training_goals() -> list[Goal]:
    """Return the speed goals relative to each system, and the memory goals relative to trl as documented."""
    goals = []
    for method, (file, more) in METHODS.items():
        for who, (name, goal) in ENTRANTS.items():
            what, command = f"{method}: tokens per CPU second, relative to {name}", f"{TRAIN} {who} tunesmith{more}"
            goals.append(Goal(what, "at least", goal, file, ("ratios", who, "speed"), command))
        what, command = f"{method}: peak memory, relative to trl as documented", f"{TRAIN} trl tunesmith{more}"
        goals.append(Goal(what, "at most", 0.6, file, ("ratios", "trl", "memory"), command))
    return goals


def head(what: str, goal: float, entrant: str, key: str) -> Goal:
    command = "kernels.py --device cpu --only head --runs 7"
    return Goal(f"output layer and loss: {what}", "at most", goal, "head-cpu", ("entrants", entrant, key), command)


def data(what: str, sense: Literal["at least", "at most"], goal: float, key: str, unit: str = "") -> Goal:
    return Goal(what, sense, goal, "data", (key,), "data.py", unit)


def start(what: str, goal: float, *keys: str) -> Goal:
    return Goal(what, "at most", goal, "start", keys, "start.py")


def checkpoint(what: str, sense: Literal["at least", "at most"], goal: float, size: int, key: str) -> Goal:
    return Goal(what, sense, goal, "checkpoint", ("sizes", size, key), "checkpoint.py --repeats 7")


def scale(what: str, goal: float, key: str) -> Goal:
    return Goal(what, "at most", goal, "scale", ("growth", key), "scale.py")


SHARING = ("two_processes_of_two_independent", "cpu")
GOALS = [
    *training_goals(),
    head("memory, relative to all logits at once", 0.25, "ours", "memory_ratio"),
    head("time, relative to all logits at once", 1.1, "ours", "time_ratio"),
    head("time with half of the labels masked, relative to all logits", 0.6, "ours, half masked", "time_ratio"),
    data("packing: fraction of padding", "at most", 0.01, "padding"),
    data("data preparation: throughput, relative to the tokenizer alone", "at least", 0.95, "rate_of_bare"),
    data("data preparation with a warm cache: time, relative to the first run", "at most", 0.02, "second_run"),
    data("data loader: time from opening to a batch at any position", "at most", 50, "resume_ms", "ms"),
    start("start to first step: CPU time, relative to importing torch and loading the model", 1.3, "start_cpu_s"),
    start("start to first step: wall time, relative to importing torch and loading the model", 1.3, "start_s"),
    checkpoint(
        "checkpoint of 64 MB: write rate, relative to a raw write with fsync", "at least", 0.9, 0, "bytes_per_s_of_raw"
    ),
    checkpoint(
        "checkpoint of 361 MB: write rate, relative to a raw write with fsync", "at least", 0.9, 1, "bytes_per_s_of_raw"
    ),
    checkpoint(
        "checkpoint of 361 MB: stall of a background save, relative to a synchronous one",
        "at most",
        0.15,
        1,
        "stall_of_waited_for",
    ),
    start("heartbeat, watchdog, ledger and journal: fraction of a step", 0.01, "upkeep", "share"),
    Goal(
        "evaluation: throughput of two processes, relative to two independent ones",
        "at least",
        0.9,
        "evaluation",
        SHARING,
        "evaluation.py",
    ),
    Goal(
        "evaluation: memory, relative to keeping all logits",
        "at most",
        0.25,
        "evaluation",
        ("memory", "ratio"),
        "evaluation.py",
    ),
    Goal(
        "chat next to a training run: tokens per second, relative to an idle machine",
        "at least",
        0.5,
        "chat",
        ("chat_of_idle",),
        "chat.py",
    ),
    Goal(
        "training next to a chat: tokens per second, relative to training alone",
        "at least",
        0.6,
        "chat",
        ("training_of_alone",),
        "chat.py",
    ),
    Goal(
        "model proof of SmolLM2-135M in the plan: time in a new process",
        "at most",
        20.0,
        "model-proof",
        ("plan_s",),
        "model_proof.py",
        "s",
    ),
    Goal(
        "model proof of SmolLM2-135M in plan and worker: fraction of a run of one hour",
        "at most",
        0.03,
        "model-proof",
        ("of_an_hour",),
        "model_proof.py",
    ),
    scale("data preparation: memory for 80,000 rows, relative to 5,000 (constant: 1)", 1.5, "memory"),
    scale("data preparation: CPU time per row for 80,000 rows, relative to 5,000 (linear: 1)", 1.1, "cpu_a_row"),
]
