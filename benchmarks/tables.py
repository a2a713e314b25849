"""Write docs/benchmarks.md from benchmarks/results/: every goal with its measured value.

    python benchmarks/tables.py [--print]

Each row names the command that reproduces it. Goals without a result are marked as not measured. For a missed goal, the
page reports the shortfall and, if the benchmark recorded one, a profile.
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
    """Return median, low and high of a result; None if it was not measured."""
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
    target, command = f"{goal.sense} {shown(goal.goal, goal.unit)}", f"`python benchmarks/{goal.command}`"
    result = find(results, goal.keys)
    if result is None:
        reason = (results or {}).get("skipped", {}).get(str(goal.keys[1]) if len(goal.keys) > 1 else "")
        return f"| {goal.what} | {target} | {reason or 'not measured'} | | | {command} |"
    spread = "" if result["low"] == result["high"] else f"{shown(result['low'])} to {shown(result['high'])}"
    measured = shown(result["median"], goal.unit)
    return f"| {goal.what} | {target} | {measured} | {spread} | {verdict(goal, result['median'])} | {command} |"


def page() -> str:
    results = {name: read(name) for name in dict.fromkeys(goal.file for goal in GOALS)}
    lines = [
        "# Benchmarks",
        "",
        "Performance goals and results on a machine without a GPU. Most are ratios: the compared systems alternate in",
        "one run, and the table shows the median of the pairs with minimum and maximum. Times are CPU seconds unless",
        "stated otherwise. Each row names the command that reproduces it. `python benchmarks/tables.py` generates this",
        "page from `benchmarks/results/`.",
        "",
        "| quantity | goal | measured | minimum to maximum | met | command |",
        "|---|---|---|---|---|---|",
        *(row(goal, results[goal.file]) for goal in GOALS),
        "",
        *shortfalls(results),
        *training(results),
        *scale(results["scale"]),
        "## Machines",
        "",
        *(f"- `{name}`: {machine_of(result)}" for name, result in results.items() if result is not None),
        "",
        "## Reproduce the results",
        "",
        "On an otherwise idle machine; this takes a few hours. `--add` adds rounds to the existing results: first",
        "remove `benchmarks/results/train.json` and `train-full.json` if Tunesmith has changed.",
        "",
        "```sh",
        *commands(),
        "```",
        "",
        "LLaMA-Factory 0.9.5 cannot be installed into the same environment as Tunesmith; `--llamafactory PYTHON`",
        "selects the interpreter of a separate environment. There, run",
        "`pip install llamafactory==0.9.5 torch==2.13.0`, uninstall torchvision and torchaudio (the published builds",
        "do not load with a CPU build of torch), and create an empty `torchaudio.py` in its site-packages, since",
        "LLaMA-Factory imports that name.",
    ]
    return "\n".join(lines) + "\n"


def shortfalls(results: dict[str, Any]) -> list[str]:
    """Profiles of the benchmarks that miss their goals."""
    lines = []
    for goal in GOALS:
        result = find(results[goal.file], goal.keys)
        if result is not None and not goal.holds(result["median"]) and (profile := results[goal.file].get("profile")):
            missed = f"{shown(result['median'])} instead of {shown(goal.goal)}"
            lines.append(f"- {goal.what}: {missed}. Profile: {parts(profile)}.")
    return ["## Profiles of missed goals", "", *lines, ""] if lines else []


def parts(profile: list[dict[str, Any]]) -> str:
    return ", ".join(f"{entry['where']} {entry['share']:.0%}" for entry in profile)


def training(results: dict[str, Any]) -> list[str]:
    lines = []
    for title, (name, _) in METHODS.items():
        if (result := results[name]) is None:
            continue
        lines += [f"## {title}: throughput and memory", ""]
        lines += [
            "| system | tokens per CPU second | peak memory | CPU seconds to the first step | rounds |",
            "|---|---|---|---|---|",
        ]
        for who, of in result["entrants"].items():
            rate, peak, first = of["tokens_per_cpu_s"], of["peak_bytes"], of["first_step_cpu_s"]
            cells = [
                f"{rate['median']:.1f} ({rate['low']:.1f} to {rate['high']:.1f})",
                f"{peak['median'] / 1e9:.2f} GB",
            ]
            lines.append(f"| {who} | {' | '.join(cells)} | {first['median']:.1f} | {rate['runs']} |")
        lines += [f"| {who} | skipped: {why} | | | |" for who, why in result["skipped"].items()]
        if result.get("profile"):
            lines += ["", f"Profile of Tunesmith's steps (torch profiler): {parts(result['profile'])}."]
        lines.append("")
    return lines


def scale(results: dict[str, Any] | None) -> list[str]:
    if results is None:
        return []
    from_to = "| {} | {:,.2f} at {:,} {} | {:,.2f} at {:,} {} | {:.2f} |"
    quantities = [
        ("CPU microseconds per prepared row", "rows", "cpu_us_a_row", "rows", "cpu_a_row"),
        ("peak bytes of data preparation", "rows", "peak_bytes", "rows", "memory"),
        ("CPU microseconds per prepared token", "tokens", "cpu_us_a_token", "tokens", "cpu_a_token"),
        ("CPU milliseconds of one rank per batch", "ranks", "cpu_ms_a_step", "ranks", "cpu_a_step_of_a_rank"),
        ("CPU nanoseconds per parameter to write and verify a checkpoint", "parameters", "cpu_ns_a_parameter",
         "parameters", "cpu_a_parameter"),
    ]  # fmt: skip
    lines = ["## Scaling", "", "`python benchmarks/scale.py`. A growth of 1 is linear; for memory, constant.", ""]
    lines += ["| quantity | smallest | largest | growth |", "|---|---|---|---|"]
    for what, part, key, unit, grown in quantities:
        first, last = results[part][0], results[part][-1]
        ends = [first[key]["median"], first[unit], unit, last[key]["median"], last[unit], unit]
        lines.append(from_to.format(what, *ends, results["growth"][grown]))
    return [*lines, "", f"Bytes per additional row: {results['bytes_a_further_row']:.0f}.", ""]


def machine_of(results: dict[str, Any]) -> str:
    about = results["machine"]
    load = about.get("load_average", about.get("load_before", 0.0))
    description = [str(about["cpu"]), f"{about['cores']} cores", f"load {load:.1f}", f"torch {about['torch']}"]
    return ", ".join([*description, *([about["time"]] if "time" in about else [])])


def commands() -> list[str]:
    """Return each command once, in the order of the table; the training rounds run one system per call."""
    others = dict.fromkeys(goal.command for goal in GOALS if not goal.command.startswith("train.py"))
    return [
        *(f"python benchmarks/{command}" for command in others),
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
