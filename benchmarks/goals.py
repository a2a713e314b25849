"""The goals on a machine without a GPU: what is measured, in which file its numbers stand, by which command."""

from dataclasses import dataclass
from typing import Literal

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Goal:
    """One ratio (or a number with its unit). file, keys: where it stands in benchmarks/results/."""

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
    "trl": ("trl as its documentation sets it up", 1.5),
    "llamafactory": ("LLaMA-Factory with neat packing, all else as it comes", 1.5),
    "trl_tuned": ("trl tuned by hand: packed, activations kept", 1.15),
    "bare_unpadded": ("a bare loop of torch and peft that pads nothing", 1.05),
}
METHODS = {"LoRA": ("train", ""), "All weights": ("train-full", " --method full")}


def training_goals() -> list[Goal]:
    """Speed against each entrant, and memory against the peer as documented."""
    goals = []
    for method, (file, more) in METHODS.items():
        for who, (name, goal) in ENTRANTS.items():
            what, command = f"{method}: tokens a CPU second, of {name}", f"{TRAIN} {who} tunesmith{more}"
            goals.append(Goal(what, "at least", goal, file, ("ratios", who, "speed"), command))
        what, command = f"{method}: peak memory, of trl as its documentation sets it up", f"{TRAIN} trl tunesmith{more}"
        goals.append(Goal(what, "at most", 0.6, file, ("ratios", "trl", "memory"), command))
    return goals


def head(what: str, goal: float, entrant: str, key: str) -> Goal:
    command = "kernels.py --device cpu --only head --runs 7"
    return Goal(f"head and loss, {what}", "at most", goal, "head-cpu", ("entrants", entrant, key), command)


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
    head("memory of that of all logits at once", 0.25, "ours", "memory_ratio"),
    head("time of that of all logits at once", 1.1, "ours", "time_ratio"),
    head("half of the labels masked, time of that of all logits", 0.6, "ours, half masked", "time_ratio"),
    data("packing: padding", "at most", 0.01, "padding"),
    data("rows prepared, of the bare tokenizer's batch rate", "at least", 0.95, "rate_of_bare"),
    data("rows prepared before, time of that of the first run", "at most", 0.02, "second_run"),
    data("loader, from opening to the batch at any position", "at most", 50, "resume_ms", "ms"),
    start("command to first step, of importing torch and loading the model", 1.3, "start_cpu_s"),
    start("the same in wall seconds", 1.3, "start_s"),
    checkpoint("checkpoint of 64 MB, rate of a raw write with fsync", "at least", 0.9, 0, "bytes_per_s_of_raw"),
    checkpoint("checkpoint of 361 MB, rate of a raw write with fsync", "at least", 0.9, 1, "bytes_per_s_of_raw"),
    checkpoint("checkpoint of 361 MB, stall of that of a save waited for", "at most", 0.15, 1, "stall_of_waited_for"),
    start("heartbeat, watchdog, ledger and journal, share of a step", 0.01, "upkeep", "share"),
    Goal("evaluation, two processes of twice one", "at least", 0.9, "evaluation", SHARING, "evaluation.py"),
    Goal(
        "evaluation, memory of keeping the logits", "at most", 0.25, "evaluation", ("memory", "ratio"), "evaluation.py"
    ),
    scale("memory of preparing 80,000 rows, of 5,000 (flat is 1)", 1.5, "memory"),
    scale("CPU time a row of 80,000, of 5,000 (linear is 1)", 1.1, "cpu_a_row"),
]
