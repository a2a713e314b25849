"""Compare the results of two checkouts for one recipe, part by part, from their files."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from safetensors import deserialize, safe_open

VOLATILE = {
    *("time", "seconds", "step_s", "tokens_per_s", "train_seconds", "stall_s", "started", "heartbeat", "eta_s"),
    *("pid", "host", "peak_memory_bytes", "memory_bytes", "tunesmith_version"),
}
"""Measured fields, and the version: they must exist on both sides, with any value."""
TEXT = {"reason", "remedy", "message", "what", "where", "why", "implementation"}
"""Human-readable fields, whose wording may change."""
LOSSES = ("step", "evaluation", "few_shot", "retained")
INTERRUPTED_AT = {"start": ("step", "resumed_from"), "resume": ("step", "path"), "checkpoint": ("step", "path")}
"""Fields that depend on the step at which a run was interrupted, which varies."""
GROUPED = re.compile(r"(?<=\d)[ ,\u202f](?=\d{3}\b)")


@dataclass(frozen=True)
class Finding:
    """Result for one part: the number of compared values and the first difference, None if equal."""

    what: str
    number: int
    difference: str | None


class Result:
    """The files of one side. Paths below the directory in which they were written are masked."""

    def __init__(self, root: Path):
        self.root = root
        self.run = root / "run"
        record = json.loads((root / "commands.json").read_text(encoding="utf-8"))
        self.written_in: str = record["directory"]
        self.commands: list[dict[str, Any]] = record["commands"]

    def text(self, path: Path) -> str:
        return path.read_text(encoding="utf-8").replace(self.written_in, "<here>")

    def json(self, path: Path) -> Any:
        return json.loads(self.text(path)) if path.is_file() else None

    def lines(self, path: Path) -> list[Any]:
        return [json.loads(line) for line in self.text(path).splitlines()] if path.is_file() else []

    def named(self, *patterns: str) -> dict[str, Path]:
        """Return files by their path relative to the root."""
        paths = sorted(path for pattern in patterns for path in self.root.glob(pattern) if path.is_file())
        return {str(path.relative_to(self.root)): path for path in paths}

    def events(self) -> list[dict[str, Any]]:
        return self.lines(self.run / "events.jsonl")

    @property
    def interrupted(self) -> bool:
        return any(command["expected"] for command in self.commands)


def compare(base: Path, new: Path) -> list[Finding]:
    """Compare every part of the results in two directories, in the order of a run's stages."""
    sides = Result(base), Result(new)
    return [_finding(what, read, sides) for what, read in PARTS.items()]


def _finding(what: str, read: "Callable[[Result], dict[str, Any]]", sides: tuple[Result, Result]) -> Finding:
    try:
        first, second = (read(side) for side in sides)
    except (ValueError, OSError) as error:
        return Finding(what, 0, f"unreadable: {error}")
    if read is plan:
        remove_new_sections(sides[1], first, second)
    elif read in (events, outputs):
        for name in first.keys() & second.keys():  # not the kinds of events and the files themselves
            remove_new_keys(first[name], second[name])
    difference = next(differences(first, second), None)
    if difference is None and not first and what not in OPTIONAL:
        difference = "missing on both sides"
    return Finding(what, len(first), difference)


# --- Parts: values by name, such that equal values mean equal results ------------------------------------------------


def commands(side: Result) -> dict[str, Any]:
    """Exit codes. A command that failed on both sides is a difference, since nothing was compared."""
    codes = {}
    for command in side.commands:
        code, expected = command["exit_code"], command["expected"]
        if code != expected:
            errors = (side.root / f"{command['name']}.err").read_text(errors="replace").strip().splitlines()[-3:]
            raise ValueError(f"{command['name']} in {side.root} exited with code {code}: {' / '.join(errors)}")
        codes[command["name"]] = code
    return codes


def files(side: Result) -> dict[str, Any]:
    """File names. Those of the cache are its keys; `digests` is ignored, since it caches hashes by path and time."""
    paths = side.named("run/**/*", "cache/**/*", "merged/**/*", "evaluated/*")
    ignored = ("run/logs/", "run/beats/", "cache/digests/")
    return {name: "" for name in paths if not name.startswith(ignored)}


def plan(side: Result) -> dict[str, Any]:
    content = side.json(side.run / "plan.json") or {}
    for choice in content.get("choices", []):
        if choice["key"] == "memory":
            choice["num_bytes"] = None
        if isinstance(choice["value"], str):
            choice["value"] = GROUPED.sub("", choice["value"])
    return masked(content)


def remove_new_sections(side: Result, base: dict[str, Any], new: dict[str, Any]) -> None:
    """Remove recipe sections that only the new code has and the recipe does not set: they have their defaults, and
    their effects are visible in the other parts."""
    path = side.run / "recipe.yaml"
    named = yaml.safe_load(side.text(path)) if path.is_file() else {}
    known = base.get("recipe", {})
    for key in [key for key in new.get("recipe", {}) if key not in known and key not in named]:
        del new["recipe"][key]


def remove_new_keys(base: Any, new: Any) -> None:
    """Remove keys that only the new code writes into an event or an output: readers ignore what they do not know."""
    if isinstance(base, dict) and isinstance(new, dict):
        for key in [key for key in new if key not in base]:
            del new[key]
        for key in base.keys() & new.keys():
            remove_new_keys(base[key], new[key])
    elif isinstance(base, list) and isinstance(new, list):
        for first, second in zip(base, new, strict=False):
            remove_new_keys(first, second)


def rows(side: Result) -> dict[str, Any]:
    """Rendered rows, and the outcome of each row."""
    shown = {f"row {row['row']}": row for row in side.json(side.root / "show.out") or []}
    receipts = {name: side.lines(path) for name, path in side.named("run/receipts/*.jsonl").items()}
    summary = {name: side.json(path) for name, path in side.named("run/receipts/*.json").items()}
    return masked(shown | receipts | summary)


def index(side: Result) -> dict[str, Any]:
    paths = side.named("cache/index/*/*/*")
    return {name: path.read_bytes() for name, path in paths.items() if "/receipts/" not in name}


def losses(side: Result) -> dict[str, Any]:
    events_by_step: dict[str, list[Any]] = {}
    for event in (event for event in side.events() if event["kind"] in LOSSES):
        events_by_step.setdefault(f"{event['kind']} {event.get('when', '')} {event['step']}", []).append(masked(event))
    return events_by_step


def answers(side: Result) -> dict[str, Any]:
    return masked({f"{event['when']}": event for event in side.events() if event["kind"] == "answers"})


def ledger(side: Result) -> dict[str, Any]:
    ledgers = {name: side.lines(path) for name, path in side.named("run/ledger/*").items()}
    for entry in (entry for entries in ledgers.values() for entry in entries if side.interrupted):
        entry["attempt"] = None
    return ledgers


def evaluations(side: Result) -> dict[str, Any]:
    """Per-row results."""
    return {name: side.lines(path) for name, path in side.named("run/evaluations/*").items()}


def checkpoints(side: Result) -> dict[str, Any]:
    states = {name: masked(side.json(path)) for name, path in side.named("run/checkpoints/*/state.json").items()}
    return tensors(side, "run/checkpoints/*/*.safetensors", "run/*.safetensors") | states


def export(side: Result) -> dict[str, Any]:
    paths = side.named("run/export/*.json", "merged/*.json")
    configs = {name: side.text(path) for name, path in paths.items() if not name.endswith("manifest.json")}
    return tensors(side, "run/export/*.safetensors", "merged/*.safetensors") | configs


def events(side: Result) -> dict[str, Any]:
    """All other events, by kind, since the order of events of a background write varies."""
    by_kind: dict[str, list[Any]] = {}
    for event in side.events():
        if event["kind"] in (*LOSSES, "answers"):
            continue
        if event["kind"] == "checkpoint":
            event["num_bytes"] = None  # the state contains seconds, with a varying number of digits
        if side.interrupted:
            event |= dict.fromkeys(INTERRUPTED_AT.get(event["kind"], ()))
            event |= {"step": None} if event.get("outcome") == "preempted" else {}
        by_kind.setdefault(event["kind"], []).append(masked(event))
    return by_kind


def status(side: Result) -> dict[str, Any]:
    files: dict[str, Any] = {name: masked(side.json(side.run / name)) for name in ("status.json", "launch.json")}
    number, *_random_id = side.text(side.run / "attempt").split()
    return files | {"attempt": number}


def outputs(side: Result) -> dict[str, Any]:
    """JSON output and result files of the commands after training."""
    printed = {name: side.json(path) for name, path in side.named("*.out").items() if name in PRINTED}
    return masked(printed | {name: side.lines(path) for name, path in side.named("evaluated/*.jsonl").items()})


PRINTED = ("chat.out", "evaluate.out", "merge.out")
PARTS: dict[str, Callable[[Result], dict[str, Any]]] = {
    part.__name__: part
    for part in (
        *(commands, plan, rows, index, ledger, losses, answers, evaluations, checkpoints, export),
        *(outputs, events, status, files),
    )
}
OPTIONAL = {"answers", "outputs"}


def tensors(side: Result, *patterns: str) -> dict[str, Any]:
    """Type, shape and bytes of every tensor by file and name, and the metadata in the file headers."""
    values: dict[str, Any] = {}
    for name, path in side.named(*patterns).items():
        with safe_open(path, "numpy") as file:
            values[f"{name} header"] = file.metadata()
        for tensor, content in deserialize(path.read_bytes()):
            values[f"{name} {tensor}"] = {**content, "data": bytes(content["data"])}
    return values


def masked(value: Any) -> Any:
    """Return the value with volatile and human-readable fields masked."""
    if isinstance(value, dict):
        return {key: None if key in VOLATILE | TEXT else masked(item) for key, item in value.items()}
    return [masked(item) for item in value] if isinstance(value, list) else value


# --- Differences -----------------------------------------------------------------------------------------------------

MISSING = object()


def differences(first: Any, second: Any, path: str = "") -> Iterator[str]:
    """Yield the differences between two values, bit for bit: `path: value != value`."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            where = f"{path}: {key}" if path else str(key)
            yield from differences(first.get(key, MISSING), second.get(key, MISSING), where)
    elif isinstance(first, list) and isinstance(second, list):
        for number, (left, right) in enumerate(zip_longest(first, second, fillvalue=MISSING)):
            yield from differences(left, right, f"{path}[{number}]")
    elif isinstance(first, bytes) and isinstance(second, bytes):
        if first != second:
            yield f"{path}: {_bytes(first, second)}"
    elif type(first) is not type(second) or repr(first) != repr(second):
        # repr distinguishes 0.0 from -0.0; the types distinguish 1, 1.0 and True.
        yield f"{path}: {_shown(first)} != {_shown(second)}"


def _bytes(first: bytes, second: bytes) -> str:
    if len(first) != len(second):
        return f"{len(first)} bytes != {len(second)} bytes"
    positions = [number for number, (left, right) in enumerate(zip(first, second, strict=True)) if left != right]
    at = positions[0]
    return f"byte {at} of {len(first)}: {first[at]:02x} != {second[at]:02x} ({len(positions)} bytes differ)"


def _shown(value: Any) -> str:
    if value is MISSING:
        return "missing"
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
