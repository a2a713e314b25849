"""Run one recipe with the code of one checkout, in processes that import Tunesmith from there only."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from compare.recipes import Case, write_rows

PREEMPTED = 75
INTERRUPT_AFTER_STEP = 20
TIMEOUT_S = 300.0
# For the processes of both sides. One thread each, so that the order of sums is fixed.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "1",
    "COLUMNS": "200",
}
DROPPED = ("TUNESMITH_", "RAY_", "SLURM_", "PYTHON")
ENTRY_POINTS = {"cli/main.py": "tunesmith.cli.main", "launcher/cli.py": "tunesmith.launcher.cli"}


@dataclass(frozen=True)
class Checkout:
    root: Path

    @property
    def command(self) -> list[str]:
        """Command that starts its command line."""
        for file, module in ENTRY_POINTS.items():
            if (self.root / file).is_file():
                return [sys.executable, "-P", "-m", module]
        raise SystemExit(f"{self.root} is not a checkout of Tunesmith: it has none of {', '.join(ENTRY_POINTS)}")

    def environment(self, cache: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        return {**kept, **ENVIRONMENT, "PYTHONPATH": str(self.root), "TUNESMITH_CACHE": str(cache)}

    def require_own_code(self) -> None:
        """Exit unless this is a checkout and the interpreter imports Tunesmith from it."""
        command = [*self.command[:2], "-c", "import tunesmith; print(tunesmith.__file__)"]
        environment = self.environment(Path())
        result = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=True)
        if not Path(result.stdout.strip()).is_relative_to(self.root):
            raise SystemExit(f"with PYTHONPATH={self.root}, tunesmith is imported from {result.stdout.strip()}")


class Run:
    """A case run with the code of a checkout. `directory` contains inputs and results."""

    def __init__(self, case: Case, checkout: Checkout, directory: Path):
        self.case, self.checkout, self.directory = case, checkout, directory
        self.commands: list[dict] = []

    def run(self) -> None:
        """Run the commands of the case until one has an unexpected exit code; commands.json lists them."""
        self.directory.mkdir(parents=True)
        write_rows(self.directory)
        (self.directory / "recipe.yaml").write_text(yaml.safe_dump(self.case.recipe, sort_keys=False))
        train = ("train", "recipe.yaml", "--run-dir", "run")
        if self.case.interrupted:
            succeeded = self._interrupt(train) and self._call("resume", ("resume", "run"))
        else:
            succeeded = self._call("train", train)
        show = ("data", "show", "recipe.yaml", "--limit", "1000", "--json")
        for name, arguments in (("show", show), *self.case.more):
            succeeded = succeeded and self._call(name, arguments)
        record = {"directory": str(self.directory), "commands": self.commands}
        (self.directory / "commands.json").write_text(json.dumps(record, indent=1))

    def _start(self, name: str, arguments: tuple[str, ...]) -> subprocess.Popen:
        with open(self.directory / f"{name}.out", "wb") as output, open(self.directory / f"{name}.err", "wb") as errors:
            return subprocess.Popen(
                [*self.checkout.command, *arguments],
                cwd=self.directory,
                env=self.checkout.environment(self.directory / "cache"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )

    def _call(self, name: str, arguments: tuple[str, ...], expected: int = 0) -> bool:
        return self._end(name, arguments, self._start(name, arguments), expected)

    def _interrupt(self, arguments: tuple[str, ...]) -> bool:
        """Send SIGTERM after some training steps; the run saves its state."""
        process = self._start("train", arguments)
        deadline = time.monotonic() + TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline and self._step() < INTERRUPT_AFTER_STEP:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        return self._end("train", arguments, process, PREEMPTED)

    def _step(self) -> int:
        """Return the number of step events in the log so far."""
        log = self.directory / "run" / "events.jsonl"
        return log.read_text(errors="replace").count('"kind":"step"') if log.is_file() else 0

    def _end(self, name: str, arguments: tuple[str, ...], process: subprocess.Popen, expected: int) -> bool:
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        self.commands.append({"name": name, "arguments": arguments, "exit_code": code, "expected": expected})
        return code == expected
