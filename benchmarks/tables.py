"""Writes docs/benchmarks.md from what the benchmarks left in benchmarks/results/: every goal beside what was measured.

    python benchmarks/tables.py [--print]

A line says by what command it was measured, on what machine and when. A goal that nothing has been measured for says
so. Where a goal is missed, the page says by how much, and where the time goes if the benchmark profiled it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from goals import ENTRANTS, GOALS, METHODS, TRAIN, Goal, Keys

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"


def read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def find(results: dict[str, Any] | None, keys: Keys) -> dict[str, float] | None:
    """Median, low and high of what was measured; None where nothing was."""
    value: Any = results
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    if not isinstance(value, dict):
        return {"median": value, "low": value, "high": value}
    spread = value.get("all") or [value["low"], value["high"]]
    return {"median": value["median"], "low": min(spread), "high": max(spread)}


def shown(number: float, unit: str = "") -> str:
    digits = 1 if unit else 2 if number >= 0.1 else 4
    return f"{number:.{digits}f}{' ' + unit if unit else ''}"


def verdict(goal: Goal, measured: float) -> str:
    if goal.holds(measured):
        return "yes"
    return f"no, by {abs(measured - goal.goal) / goal.goal:.0%}"


def row(goal: Goal, results: dict[str, Any] | None) -> str:
    wanted, command = f"{goal.sense} {shown(goal.goal, goal.unit)}", f"`python benchmarks/{goal.command}`"
    found = find(results, goal.keys)
    if found is None:
        left_out = (results or {}).get("skipped", {}).get(str(goal.keys[1]) if len(goal.keys) > 1 else "")
        return f"| {goal.what} | {wanted} | {left_out or 'not measured'} | | | {command} |"
    spread = "" if found["low"] == found["high"] else f"{shown(found['low'])} to {shown(found['high'])}"
    measured = shown(found["median"], goal.unit)
    return f"| {goal.what} | {wanted} | {measured} | {spread} | {verdict(goal, found['median'])} | {command} |"


def page() -> str:
    results = {name: read(name) for name in dict.fromkeys(goal.file for goal in GOALS)}
    lines = [
        "# Benchmarks",
        "",
        "What fast means here, as ratios on a machine without a GPU: entrants in turn in one run, the median of the",
        "pairs, its lowest and highest. Written by `python benchmarks/tables.py` from `benchmarks/results/`; each line",
        "names the command that measures it again. Ratios of CPU seconds where a line does not say otherwise.",
        "",
        "| what | goal | measured | lowest to highest | holds | command |",
        "|---|---|---|---|---|---|",
        *(row(goal, results[goal.file]) for goal in GOALS),
        "",
        *shortfalls(results),
        *training(results),
        *scale(results["scale"]),
        "## Machines",
        "",
        *(f"- `{name}`: {machine_of(found)}" for name, found in results.items() if found is not None),
        "",
        "## To measure all of it again",
        "",
        "On a machine that does nothing else; a few hours. `--add` puts rounds to those that are there already:",
        "remove `benchmarks/results/train.json` and `train-full.json` first where Tunesmith itself has changed.",
        "",
        "```sh",
        *commands(),
        "```",
        "",
        "LLaMA-Factory 0.9.5 does not go beside Tunesmith: `--llamafactory` names the Python of an environment of its",
        "own. `pip install llamafactory==0.9.5 torch==2.13.0` there, then uninstall torchvision and torchaudio (the",
        "published ones do not load beside a CPU torch), and put an empty `torchaudio.py` into its site-packages:",
        "it imports the name.",
    ]
    return "\n".join(lines) + "\n"


def shortfalls(results: dict[str, Any]) -> list[str]:
    """Where the time goes in what misses its goal, as its benchmark profiled it."""
    lines = []
    for goal in GOALS:
        found = find(results[goal.file], goal.keys)
        if found is not None and not goal.holds(found["median"]) and (most := results[goal.file].get("profile")):
            lines.append(
                f"- {goal.what}: {shown(found['median'])} instead of {shown(goal.goal)}. Its time: {parts(most)}."
            )
    return ["## Where the time goes", "", *lines, ""] if lines else []


def parts(profile: list[dict[str, Any]]) -> str:
    return ", ".join(f"{entry['where']} {entry['share']:.0%}" for entry in profile)


def training(results: dict[str, Any]) -> list[str]:
    lines = []
    for title, (name, _) in METHODS.items():
        if (found := results[name]) is None:
            continue
        lines += [f"## {title}: tokens and memory", ""]
        lines += [
            "| | tokens a CPU second | peak memory | CPU seconds to the first step | rounds |",
            "|---|---|---|---|---|",
        ]
        for who, of in found["entrants"].items():
            rate, peak, first = of["tokens_per_cpu_s"], of["peak_bytes"], of["first_step_cpu_s"]
            cells = [
                f"{rate['median']:.1f} ({rate['low']:.1f} to {rate['high']:.1f})",
                f"{peak['median'] / 1e9:.2f} GB",
            ]
            lines.append(f"| {who} | {' | '.join(cells)} | {first['median']:.1f} | {rate['runs']} |")
        lines += [f"| {who} | left out: {why} | | | |" for who, why in found["skipped"].items()]
        if found.get("profile"):
            lines += ["", f"Of Tunesmith's steps, under torch's profiler: {parts(found['profile'])}."]
        lines.append("")
    return lines


def scale(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    from_to = "| {} | {:,.2f} at {:,} {} | {:,.2f} at {:,} {} | {:.2f} |"
    told = [
        ("CPU microseconds a row prepared", "rows", "cpu_us_a_row", "rows", "cpu_a_row"),
        ("bytes at most, preparing", "rows", "peak_bytes", "rows", "memory"),
        ("CPU microseconds a token prepared", "tokens", "cpu_us_a_token", "tokens", "cpu_a_token"),
        ("CPU milliseconds of a rank for a step's batch", "ranks", "cpu_ms_a_step", "ranks", "cpu_a_step_of_a_rank"),
        ("CPU nanoseconds a parameter, checkpoint written and verified", "parameters", "cpu_ns_a_parameter",
         "parameters", "cpu_a_parameter"),
    ]  # fmt: skip
    lines = ["## How cost grows", "", "`python benchmarks/scale.py`; growth of 1 is linear, of memory flat.", ""]
    lines += ["| what | smallest | largest | growth |", "|---|---|---|---|"]
    for what, part, key, unit, grown in told:
        first, last = found[part][0], found[part][-1]
        ends = [first[key]["median"], first[unit], unit, last[key]["median"], last[unit], unit]
        lines.append(from_to.format(what, *ends, found["growth"][grown]))
    return [*lines, "", f"Bytes a further row: {found['bytes_a_further_row']:.0f}.", ""]


def machine_of(results: dict[str, Any]) -> str:
    about = results["machine"]
    load = about.get("load_average", about.get("load_before", 0.0))
    told = [str(about["cpu"]), f"{about['cores']} cores", f"load {load:.1f}", f"torch {about['torch']}"]
    return ", ".join([*told, *([about["time"]] if "time" in about else [])])


def commands() -> list[str]:
    """Each once, in the order of the table; the training rounds one entrant a call, then this page."""
    others = dict.fromkeys(goal.command for goal in GOALS if not goal.command.startswith("train.py"))
    return [
        *(f"python benchmarks/{one}" for one in others),
        f"for who in {' '.join(ENTRANTS)}; do",
        *(f"    python benchmarks/{TRAIN} $who tunesmith{more}" for _, more in METHODS.values()),
        "done",
        "python benchmarks/tables.py",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="show the page instead of writing it")
    if parser.parse_args().print:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
