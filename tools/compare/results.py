"""Compares what two checkouts made of one recipe, part by part, from their files alone."""

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
    *("pid", "host", "peak_memory_bytes", "memory_bytes"),
}
"""Fields that are measured: they have to be there on both sides, with any value."""
TEXT = {"reason", "remedy", "message", "what", "where", "why", "implementation"}
"""Fields that are written for people, whose wording may change."""
LOSSES = ("step", "evaluation", "few_shot", "retained")
PLACES = {"start": ("step", "resumed_from"), "resume": ("step", "path"), "checkpoint": ("step", "path")}
"""Fields that say at which step a run was interrupted, which is left to chance."""
GROUPED = re.compile(r"(?<=\d)[ ,\u202f](?=\d{3}\b)")


@dataclass(frozen=True)
class Finding:
    """One part of a recipe's results: how many things of it were compared, and the first difference; None: equal."""

    what: str
    number: int
    difference: str | None


class Result:
    """The files of one side. Where they were written is left out of everything that is read."""

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
        """Files by their path below the root."""
        found = sorted(path for pattern in patterns for path in self.root.glob(pattern) if path.is_file())
        return {str(path.relative_to(self.root)): path for path in found}

    def events(self) -> list[dict[str, Any]]:
        return self.lines(self.run / "events.jsonl")

    @property
    def interrupted(self) -> bool:
        return any(command["expected"] for command in self.commands)


def compare(base: Path, new: Path) -> list[Finding]:
    """Every part of the results below two directories, in the order in which they come about."""
    sides = Result(base), Result(new)
    return [_finding(what, read, sides) for what, read in PARTS.items()]


def _finding(what: str, read: "Callable[[Result], dict[str, Any]]", sides: tuple[Result, Result]) -> Finding:
    try:
        first, second = (read(side) for side in sides)
    except (ValueError, OSError) as error:
        return Finding(what, 0, f"unreadable: {error}")
    if read is plan:
        leave_out_new_sections(sides[1], first, second)
    difference = next(differences(first, second), None)
    if difference is None and not first and what not in OPTIONAL:
        difference = "neither side has any"
    return Finding(what, len(first), difference)


# --- What is read of each part: values by name, such that equal values mean equal results ----------------------------


def commands(side: Result) -> dict[str, Any]:
    """A command that failed on both sides is not equal: nothing was compared."""
    made = {}
    for command in side.commands:
        code, expected = command["exit_code"], command["expected"]
        if code != expected:
            errors = (side.root / f"{command['name']}.err").read_text(errors="replace").strip().splitlines()[-3:]
            raise ValueError(f"{command['name']} in {side.root} ended with {code}: {' / '.join(errors)}")
        made[command["name"]] = code
    return made


def files(side: Result) -> dict[str, Any]:
    """Names of files. Those of the cache are its keys; `digests` remembers hashes by path and time."""
    found = side.named("run/**/*", "cache/**/*", "merged/**/*", "evaluated/*")
    ignored = ("run/logs/", "run/beats/", "cache/digests/")
    return {name: "" for name in found if not name.startswith(ignored)}


def plan(side: Result) -> dict[str, Any]:
    content = side.json(side.run / "plan.json") or {}
    for choice in content.get("choices", []):
        if choice["key"] == "memory":
            choice["num_bytes"] = None
        if isinstance(choice["value"], str):
            choice["value"] = GROUPED.sub("", choice["value"])
    return steady(content)


def leave_out_new_sections(side: Result, base: dict[str, Any], new: dict[str, Any]) -> None:
    """Sections of the recipe that only the new code knows and the recipe does not name: they stand at their defaults,
    and what they change shows in every other part."""
    path = side.run / "recipe.yaml"
    named = yaml.safe_load(side.text(path)) if path.is_file() else {}
    known = base.get("recipe", {})
    for key in [key for key in new.get("recipe", {}) if key not in known and key not in named]:
        del new["recipe"][key]


def rows(side: Result) -> dict[str, Any]:
    """Rows as the model sees them, and what became of each."""
    shown = {f"row {row['row']}": row for row in side.json(side.root / "show.out") or []}
    receipts = {name: side.lines(path) for name, path in side.named("run/receipts/*.jsonl").items()}
    summary = {name: side.json(path) for name, path in side.named("run/receipts/*.json").items()}
    return steady(shown | receipts | summary)


def index(side: Result) -> dict[str, Any]:
    found = side.named("cache/index/*/*/*")
    return {name: path.read_bytes() for name, path in found.items() if "/receipts/" not in name}


def losses(side: Result) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    for event in (event for event in side.events() if event["kind"] in LOSSES):
        found.setdefault(f"{event['kind']} {event.get('when', '')} {event['step']}", []).append(steady(event))
    return found


def answers(side: Result) -> dict[str, Any]:
    return steady({f"{event['when']}": event for event in side.events() if event["kind"] == "answers"})


def ledger(side: Result) -> dict[str, Any]:
    found = {name: side.lines(path) for name, path in side.named("run/ledger/*").items()}
    for entry in (entry for entries in found.values() for entry in entries if side.interrupted):
        entry["attempt"] = None
    return found


def evaluations(side: Result) -> dict[str, Any]:
    """Each row's own result."""
    return {name: side.lines(path) for name, path in side.named("run/evaluations/*").items()}


def checkpoints(side: Result) -> dict[str, Any]:
    states = {name: steady(side.json(path)) for name, path in side.named("run/checkpoints/*/state.json").items()}
    return tensors(side, "run/checkpoints/*/*.safetensors", "run/*.safetensors") | states


def export(side: Result) -> dict[str, Any]:
    found = side.named("run/export/*.json", "merged/*.json")
    described = {name: side.text(path) for name, path in found.items() if not name.endswith("manifest.json")}
    return tensors(side, "run/export/*.safetensors", "merged/*.safetensors") | described


def events(side: Result) -> dict[str, Any]:
    """All other events: by kind, since those of a background write come when they come."""
    found: dict[str, list[Any]] = {}
    for event in side.events():
        if event["kind"] in (*LOSSES, "answers"):
            continue
        if event["kind"] == "checkpoint":
            event["num_bytes"] = None  # its state holds seconds, of more or fewer digits
        if side.interrupted:
            event |= dict.fromkeys(PLACES.get(event["kind"], ()))
            event |= {"step": None} if event.get("outcome") == "preempted" else {}
        found.setdefault(event["kind"], []).append(steady(event))
    return found


def status(side: Result) -> dict[str, Any]:
    return {name: steady(side.json(side.run / name)) for name in ("status.json", "launch.json", "attempt")}


def outputs(side: Result) -> dict[str, Any]:
    """What the commands after training print as JSON, and the results that they write."""
    printed = {name: side.json(path) for name, path in side.named("*.out").items() if name in PRINTED}
    return steady(printed | {name: side.lines(path) for name, path in side.named("evaluated/*.jsonl").items()})


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
    """Type, shape and bytes of every tensor by file and name, and what the files' headers hold beside them."""
    found: dict[str, Any] = {}
    for name, path in side.named(*patterns).items():
        with safe_open(path, "numpy") as file:
            found[f"{name} header"] = file.metadata()
        for tensor, content in deserialize(path.read_bytes()):
            found[f"{name} {tensor}"] = {**content, "data": bytes(content["data"])}
    return found


def steady(value: Any) -> Any:
    """The value without what differs from one run to the next, and without what is written for people."""
    if isinstance(value, dict):
        return {key: None if key in VOLATILE | TEXT else steady(item) for key, item in value.items()}
    return [steady(item) for item in value] if isinstance(value, list) else value


# --- Differences -----------------------------------------------------------------------------------------------------

NOTHING = object()


def differences(first: Any, second: Any, place: str = "") -> Iterator[str]:
    """Where two values differ, to the last bit: `place: value != value`."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            where = f"{place}: {key}" if place else str(key)
            yield from differences(first.get(key, NOTHING), second.get(key, NOTHING), where)
    elif isinstance(first, list) and isinstance(second, list):
        for number, (one, other) in enumerate(zip_longest(first, second, fillvalue=NOTHING)):
            yield from differences(one, other, f"{place}[{number}]")
    elif isinstance(first, bytes) and isinstance(second, bytes):
        if first != second:
            yield f"{place}: {_bytes(first, second)}"
    elif type(first) is not type(second) or repr(first) != repr(second):  # tells 0.0 from -0.0, and 1 from 1.0 and true
        yield f"{place}: {_shown(first)} != {_shown(second)}"


def _bytes(first: bytes, second: bytes) -> str:
    if len(first) != len(second):
        return f"{len(first)} bytes != {len(second)} bytes"
    places = [number for number, (one, other) in enumerate(zip(first, second, strict=True)) if one != other]
    at = places[0]
    return f"byte {at} of {len(first)}: {first[at]:02x} != {second[at]:02x} ({len(places)} bytes differ)"


def _shown(value: Any) -> str:
    if value is NOTHING:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
