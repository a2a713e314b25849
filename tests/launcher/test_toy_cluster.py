"""A cluster is added with one class and one list entry, here in an otherwise unchanged copy of the tree.

Then the command line and a server, with the real openai package, run complete trainings on it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.event_lines import event_lines
from tests.serving.jobs.whole_server import LONG, SHORT, WholeServer
from tests.test_architecture import PACKAGES
from tests.waiting import wait_for
from tunesmith.rundir.launch import Launch, read_launch
from tunesmith.rundir.paths import RunDir

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
LIST, ENTRY = Path("launcher/clusters.py"), "    SlurmCluster(),\n"
IMPORT = "from tunesmith.launcher.slurm.cluster import SlurmCluster\n"


def add_toy(tree: Path) -> None:
    """Add the class, its entry in the list, and the import."""
    shutil.copy(HERE / "toy_cluster.py", tree / "launcher" / "toy.py")
    text = (tree / LIST).read_text()
    assert text.count(ENTRY) == text.count(IMPORT) == 1
    text = text.replace(ENTRY, f"{ENTRY}    ToyCluster(),\n")
    text = text.replace(IMPORT, f"{IMPORT}from tunesmith.launcher.toy import ToyCluster\n")
    (tree / LIST).write_text(text)


@dataclass
class Toy:
    """tree: the copy. folder: files of the toy cluster. directory: a user's working directory with a recipe."""

    tree: Path
    folder: Path
    directory: Path
    poller: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def hold(self) -> Path:
        return self.folder / "hold"

    def start_poller(self) -> None:
        self.poller.append(subprocess.Popen([sys.executable, str(HERE / "toy_poller.py"), str(self.folder)]))

    def stop_poller(self) -> None:
        while self.poller:
            process = self.poller.pop()
            process.terminate()
            process.wait(300)

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        """Return standard output and error of a command."""
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "tunesmith.cli.main", *map(str, arguments)],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout + ended.stderr

    def submit(self, run: str, *arguments: str) -> str:
        place = ("--on", "toy", "--address", str(self.folder))
        return self.run("train", "recipe.yaml", "--run-dir", run, *place, *arguments)

    def log_of_failure(self, job: str) -> None:
        """Fail with the log of the job if it has ended."""
        state = self.folder / f"{job}.state"
        assert not state.exists() or not state.read_text().startswith("ended"), state.with_suffix(".log").read_text()

    def status(self, run: str) -> dict:
        return json.loads(self.run("status", run, "--json"))


@pytest.fixture(scope="module")
def toy(tiny_llama, chat_rows, tmp_path_factory) -> Iterator[Toy]:
    root = tmp_path_factory.mktemp("toy")
    tree, folder, directory = root / "tree", root / "cluster", root / "project"
    for place in (tree, folder, directory):
        place.mkdir()
    for package in sorted(PACKAGES):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    add_toy(tree)
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows))
    recipe = {
        "name": "tiny",
        "model": {"base": str(tiny_llama)},
        "method": {"kind": "lora", "lora_rank": 4, "lora_alpha": 8},
        "data": {"train": ["rows.jsonl"], "validation": 0.1, "max_seq_len": 256, "packing": False},
        "optimization": {"learning_rate": 1e-3, "global_batch_size": 2, "epochs": 1},
        "evaluation": {"num_answers": 0},
        "resources": {"workers": 1},
        "precision": "fp32",
        "seed": 7,
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    patch.setenv("TUNESMITH_CACHE", str(root / "cache"))
    toy = Toy(tree, folder, directory)
    yield toy
    toy.stop_poller()
    patch.undo()


@pytest.fixture
def polled(toy) -> Iterator[Toy]:
    """The toy cluster with its poller running."""
    toy.start_poller()
    wait_for((toy.folder / "alive").exists)
    yield toy
    toy.hold.unlink(missing_ok=True)
    toy.stop_poller()


def test_the_copy_differs_only_by_the_class_and_its_list_entry(toy):
    names = "import tunesmith.launcher.clusters as c; print(c.__file__, *c.NAMES)"
    ended = subprocess.run([sys.executable, "-P", "-c", names], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(toy.tree / LIST), "local", "ray", "slurm", "toy"]
    changed = set((toy.tree / LIST).read_text().splitlines()) - set((ROOT / LIST).read_text().splitlines())
    assert changed == {"    ToyCluster(),", "from tunesmith.launcher.toy import ToyCluster"}
    assert "local|ray|slurm|toy" in toy.run("train", "--help")


def test_a_pending_job_is_reported_and_cancelled(polled):
    polled.hold.touch()
    output = polled.submit("runs/pending")
    launch = read_launch(polled.directory / "runs/pending/launch.json")
    assert launch == Launch("toy", str(polled.folder), launch.job)
    assert output.splitlines() == [
        f"submitted: job {launch.job}",
        "  status: tunesmith status runs/pending --follow",
        "  logs:   tunesmith logs runs/pending --follow",
        "  stop:   tunesmith stop runs/pending",
    ]
    output = polled.run("status", "runs/pending")
    assert output.startswith("Queued.")
    assert f"job {launch.job}: train: pending" in output
    assert polled.run("stop", "runs/pending") == f"ended: job {launch.job} (train)\n"
    assert polled.run("status", "runs/pending").startswith("Not started.")


def test_a_run_is_submitted_stopped_resumed_and_completed(polled):
    run = RunDir(polled.directory / "runs/whole")
    jobs = json.loads(polled.submit("runs/whole", "--json", "--set", "optimization.epochs=20"))["jobs"]
    wait_for(lambda: len(list(event_lines(run.events, "step"))) > 3 or polled.log_of_failure(jobs["train"]))
    status = polled.status("runs/whole")
    assert status["phase"] == "training"
    assert status["jobs"] == [{"stage": "train", "job": jobs["train"], "state": "running", "fault": None}]
    assert "step" in polled.run("logs", "runs/whole", "--launcher")
    assert "the state is saved" in polled.run("stop", "runs/whole")
    assert polled.status("runs/whole")["phase"] == "preempted"
    stopped_at = polled.status("runs/whole")["step"]
    assert "submitted: job" in polled.run("resume", "runs/whole")  # where it was started
    again = read_launch(run.launch)
    assert again == Launch("toy", str(polled.folder), again.job)
    assert again.job != jobs["train"]
    polled.run("status", "runs/whole", "--follow")  # until it has ended
    assert polled.status("runs/whole")["phase"] == "done"
    assert f"job {again.job}: train: ended" in polled.run("status", "runs/whole")
    assert (run.export / "adapter_model.safetensors").is_file()
    starts = [(start["attempt"], start["step"]) for start in event_lines(run.events, "start")]
    assert starts == [(1, 0), (2, stopped_at)]
    assert "is already finished; nothing to submit" in polled.run("resume", "runs/whole")


def test_unsupported_options_are_rejected(toy):
    assert "error: --chain requires Slurm" in toy.run(
        "train", "recipe.yaml", "--on", "toy", "--address", toy.folder, "--chain", code=2
    )
    output = toy.run("train", "recipe.yaml", "--on", "slurm", "--address", toy.folder, code=2)
    assert "--address is only for a Ray cluster or a directory that a script polls" in output


def test_api_jobs_run_on_the_toy_cluster(toy, tiny_llama, chat_rows, tmp_path):
    """The first job waits for the cluster, whose script starts later; the second is paused, resumed and cancelled."""
    server = WholeServer(tmp_path, backend="toy", address=str(toy.folder), bases={"tiny": str(tiny_llama)}, max_jobs=1)
    (toy.folder / "alive").unlink(missing_ok=True)
    server.start()
    try:
        first = server.create(server.upload(chat_rows[:24]), SHORT)
        wait_for(lambda: any("is not responding" in event.message for event in server.jobs.list_events(first)))
        assert not server.run_of(first).root.exists()
        toy.start_poller()
        done = server.wait_until(first, "succeeded")
        assert server.event_steps(first) == list(range(1, 13))
        assert server.answer(done.fine_tuned_model) == server.answer(f"{done.fine_tuned_model}:ckpt-step-12")
        job = read_launch(server.run_of(first).launch).job
        messages = [event.message for event in server.jobs.list_events(first)]
        assert f"Submitted to the toy cluster as job {job}" in messages

        second = server.create(server.upload(chat_rows), LONG)
        wait_for(lambda: server.step(second) > 5)
        server.jobs.pause(second)
        server.wait_until(second, "paused")
        paused_at = server.step(second)
        server.jobs.resume(second)
        wait_for(lambda: server.step(second) > paused_at)
        server.jobs.cancel(second)
        server.wait_until(second, "cancelled")
        wait_for(lambda: all(state.read_text().startswith("ended") for state in toy.folder.glob("*.state")))
        assert [start["attempt"] for start in event_lines(server.run_of(second).events, "start")] == [1, 2]
    finally:
        server.stop()
        toy.stop_poller()
