"""Prove, train, export and serve a tiny model of every class in transformers' causal mapping.

    python tools/prove_models.py [--only CLASS...] [--stages STAGE...] [--resume] [--json FILE] [--table FILE]

Results are appended to FILE.jsonl as each stage ends, keyed by versions, and written to FILE at the end. --resume: keep
the results of these versions and run what is missing. --only, --stages: run these again and keep all others. --table:
write docs/models.md. Each stage runs in a process that is forked after torch and transformers were imported, with
limits on time and memory. Takes up to an hour on two cores.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tools.proving.forking import run_stage
from tools.proving.results import Results, environment
from tools.proving.stages import NEEDS, STAGES
from tools.proving.table import models_page
from tools.tiny_models import causal_classes, exclusion

ROOT = Path(__file__).resolve().parent.parent
JSON = ROOT / "docs" / "models.json"
PAGE = ROOT / "docs" / "models.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="CLASS", default=[])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="STAGE")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, default=JSON)
    parser.add_argument("--table", type=Path, default=PAGE)
    arguments = parser.parse_args()
    classes = causal_classes()
    if unknown := sorted(set(arguments.only) - classes.keys()):
        parser.error(f"not in transformers' causal mapping: {', '.join(unknown)}")
    partial = bool(arguments.only) or arguments.stages != list(STAGES)
    results = Results(arguments.json, environment(), keep=arguments.resume or partial)
    names = arguments.only or list(classes)
    again = set() if arguments.resume else set(arguments.stages)
    with tempfile.TemporaryDirectory(prefix="prove-models-") as scratch:
        os.environ["TUNESMITH_CACHE"] = str(Path(scratch) / "cache")
        running: set[int] = set()
        for name in names:
            if arguments.jobs > 1:
                while len(running) >= arguments.jobs:
                    running.discard(os.wait()[0])
                if (pid := os.fork()) == 0:
                    _prove_class(name, Path(scratch), results, arguments.stages, again)
                    os._exit(0)
                running.add(pid)
            else:
                _prove_class(name, Path(scratch), results, arguments.stages, again)
        for pid in running:
            os.waitpid(pid, 0)
    results.reload()
    results.write()
    arguments.table.write_text(models_page(results), encoding="utf-8")
    return 0


def _prove_class(name: str, scratch: Path, results: Results, stages: list[str], again: set[str]) -> None:
    """Run the stages of one class that have no result yet, or that are run again, and what they need."""
    if (reason := exclusion(name)) is not None:
        results.add(name, "build", {"excluded": reason}, 0.0)
        return
    todo = [stage for stage in stages if stage in again or results.of(name, stage) is None]
    needed = {need for stage in todo for need in ("build", *NEEDS.get(stage, ()))} | set(todo) if todo else set()
    root = scratch / name
    (root / "runs").mkdir(parents=True)
    failed: set[str] = set()
    for stage in STAGES:
        if stage not in needed:
            continue
        if blocking := failed & {"build", *NEEDS.get(stage, ())}:
            results.add(name, stage, {"failed": "earlier_stage", "message": sorted(blocking)[0]}, 0.0)
            failed.add(stage)
            continue
        started = time.monotonic()
        facts = _without_path(run_stage(stage, name, root), root)
        seconds = time.monotonic() - started
        results.add(name, stage, facts, seconds)
        print(f"{name} {stage} {seconds:.1f} s: {json.dumps(facts)[:200]}", flush=True)
        if "excluded" in facts:
            return
        if "failed" in facts:
            failed.add(stage)


def _without_path(facts: dict[str, Any], root: Path) -> dict[str, Any]:
    """The facts without the temporary directory, which messages name."""
    return json.loads(json.dumps(facts).replace(f"{root}/", "").replace(str(root), ""))


if __name__ == "__main__":
    sys.exit(main())
