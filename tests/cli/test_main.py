"""The console script in a separate process: exit codes, messages, speed, and modules that it must not import."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("tunesmith")
COMMANDS = ["train", "resume", "plan", "data", "evaluate", "export", "chat", "runs", "status", "report", "prove"]
HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "ray", "deepspeed"}


def tunesmith(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def rejection(*arguments: object, cwd: Path | None = None) -> str:
    """Return standard error of a command that exits with 2: one message and no traceback."""
    ended = tunesmith(*arguments, cwd=cwd)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("what to do:") == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr


def loaded_modules(tmp_path: Path, *arguments: object, cwd: Path | None = None) -> tuple[set[str], int, str]:
    """Return the top-level packages that a command imported, its exit code and its output."""
    listing = tmp_path / "modules.json"
    script = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: open({str(listing)!r}, 'w').write(json.dumps(sorted(sys.modules))))\n"
        "from tunesmith.cli.main import main\nmain()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    return (
        {name.split(".")[0] for name in json.loads(listing.read_text())},
        ended.returncode,
        ended.stdout + ended.stderr,
    )


@pytest.fixture
def project(tmp_path, tiny_llama, write_jsonl, chat_rows) -> Path:
    """A directory with a recipe and rows."""
    write_jsonl("chats.jsonl", chat_rows)
    (tmp_path / "recipe.yaml").write_text(
        f"name: tiny\nmodel: {{base: {tiny_llama}}}\nmethod: {{kind: lora, lora_rank: 4}}\n"
        "data: {train: [chats.jsonl], validation: 0.2, max_seq_len: 256}\n"
        "optimization: {global_batch_size: 4, epochs: 2}\nseed: 7\n"
    )
    return tmp_path


# --- speed and imports


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["data", "--help"], ["--version"]])
def test_help_takes_less_than_half_a_second(arguments):
    """CPU time, at best of ten: other processes share the cores, and caches."""

    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert tunesmith(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(cpu_seconds() < 0.5 for _ in range(10))


def test_help_imports_none_of_the_commands_dependencies(tmp_path):
    modules, code, _ = loaded_modules(tmp_path, "--help")
    assert code == 0
    assert not modules & (HEAVY | {"pydantic", "yaml", "numpy", "rich", "jinja2", "tokenizers"})


def test_plan_and_dry_run_do_not_import_torch(tmp_path, project):
    for arguments in (["plan", "recipe.yaml"], ["train", "recipe.yaml", "--dry-run"]):
        modules, code, output = loaded_modules(tmp_path, *arguments, cwd=project)
        assert code == 0, output
        assert "pydantic" in modules
        assert not modules & HEAVY
    assert not (project / "runs").exists()


def test_data_commands_do_not_import_torch(tmp_path, project):
    for arguments in (
        ["data", "check", "recipe.yaml"],
        ["data", "check", "chats.jsonl"],
        ["data", "show", "recipe.yaml"],
    ):
        modules, code, output = loaded_modules(tmp_path, *arguments, cwd=project)
        assert code == 0, output
        assert not modules & HEAVY, arguments


def test_commands_that_inspect_runs_do_not_import_torch(tmp_path, make_run):
    make_run("bot")
    for arguments in (["runs"], ["status", "bot"], ["report", "bot"], ["prove", "bot"]):
        modules, _, output = loaded_modules(tmp_path, *arguments, cwd=tmp_path)
        assert "Traceback" not in output
        assert not modules & HEAVY, arguments


# --- help and usage


def test_help_lists_every_command():
    text = tunesmith("--help").stdout
    listed = [line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    assert set(COMMANDS) <= set(listed)
    assert "75 preempted" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    ended = tunesmith(command, "--help")
    assert ended.returncode == 0
    assert f"tunesmith {command}" in ended.stdout


def test_the_version_is_printed():
    from tunesmith import __version__

    assert tunesmith("--version").stdout == f"tunesmith {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian", "recipe.yaml"], "train"),
        (["train"], "Missing argument"),
        (["train", "recipe.yaml", "--epochs", "2"], "--epochs"),
        (["evaluate", "model"], "--data"),
        (["status"], "Missing argument"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, expected):
    ended = tunesmith(*arguments)
    assert ended.returncode == 2
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr


# --- the recipe, its data and its model


@pytest.mark.parametrize("command", [["plan"], ["train"], ["train", "--dry-run"]])
def test_a_wrong_key_gives_one_clear_message(project, command):
    text = (project / "recipe.yaml").read_text().replace("global_batch_size", "globl_batch_size")
    (project / "recipe.yaml").write_text(text)
    name, *flags = command
    error = rejection(name, "recipe.yaml", *flags, cwd=project)
    assert "recipe.yaml:5" in error
    assert "`optimization.global_batch_size`" in error
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimization.epochs=two", "takes an integer"),
        ("optimization.epoch=2", "did you mean `optimization.epochs`?"),
        ("data.train=[nowhere.jsonl]", "nowhere.jsonl"),
        ("model.base=./nowhere", "nowhere"),
        ("model.chat_template=nowhere.jinja", "nowhere.jinja"),
        ("data.validation=0", "early_stopping needs validation rows"),
        ("epochs", "key=value"),
    ],
)
def test_wrong_values_types_and_paths_are_rejected(project, override, expected):
    extra = ["--set", "evaluation.early_stopping={}"] if override == "data.validation=0" else []
    assert expected in rejection("plan", "recipe.yaml", "--set", override, *extra, cwd=project)


def test_a_missing_recipe_lists_the_recipes_in_the_directory(project):
    assert "recipe.yaml" in rejection("train", "recipe.yml", cwd=project)


def test_rejected_rows_are_reported_and_recorded_with_file_and_line(project):
    with open(project / "chats.jsonl", "a") as file:
        file.write("{broken\n")
    error = rejection("train", "recipe.yaml", cwd=project)
    assert "chats.jsonl:61" in error
    rejects = project / "runs" / "tiny" / "receipts" / "rejects.jsonl"
    assert json.loads(rejects.read_text())["line"] == 61
    status = json.loads(tunesmith("status", "tiny", "--json", cwd=project).stdout)
    assert status["phase"] == "failed"
    assert "1 row rejected" in status["cause"]
    (project / "chats.jsonl").write_text((project / "chats.jsonl").read_text().replace("{broken\n", ""))
    assert tunesmith("train", "recipe.yaml", "--dry-run", cwd=project).returncode == 0


@pytest.mark.parametrize("place", ["recipe.yaml", "recipe.yaml/deep", ".", "/proc/tunesmith-run"])
def test_an_unusable_run_directory_is_rejected(project, place):
    error = rejection("train", "recipe.yaml", "--run-dir", place, cwd=project)
    assert "--run-dir" in error


# --- plans


def test_a_json_plan_equals_the_plan_that_a_run_stores(project):
    from tunesmith.configs.plan import Plan

    ended = tunesmith("plan", "recipe.yaml", "--json", "--set", "optimization.epochs=3", cwd=project)
    plan = Plan.model_validate_json(ended.stdout)
    assert plan.recipe.optimization.epochs == 3
    assert plan.recipe_file == str(project / "recipe.yaml")
    dry = tunesmith("train", "recipe.yaml", "--dry-run", "--json", "--set", "optimization.epochs=3", cwd=project)
    assert Plan.model_validate_json(dry.stdout).batch == plan.batch


def test_a_plan_is_shown_with_a_reason_for_every_choice(project):
    from tunesmith.configs.plan import Plan

    shown = tunesmith("plan", "recipe.yaml", cwd=project).stdout
    plan = Plan.model_validate_json(tunesmith("plan", "recipe.yaml", "--json", cwd=project).stdout)
    for choice in plan.choices:
        assert choice.key in shown
    assert "packed into" in shown
    assert "OMP_NUM_THREADS" in shown


RECIPES = sorted((Path(__file__).parents[2] / "configs" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", [p for p in RECIPES if "task: seq2seq" not in p.read_text()], ids=lambda p: p.stem)
def test_every_shipped_recipe_can_be_planned(project, recipe, tiny_llama, write_jsonl, chat_rows):
    """The model and the data are replaced by a tiny model and rows of the recipe's task."""
    pairs = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in chat_rows]
    rows = {
        "chat": chat_rows,
        "completion": [{"prompt": question, "completion": answer} for question, answer in pairs],
        "text": [{"text": f"{question} {answer}"} for question, answer in pairs],
        "classification": [
            {"text": question, "label": ("discharged", "readmitted")[number % 2]}
            for number, (question, _) in enumerate(pairs)
        ],
        "preference": [{"prompt": question, "chosen": answer, "rejected": "No."} for question, answer in pairs],
        "kto": [
            {"prompt": question, "completion": answer, "label": number % 2 == 0}
            for number, (question, answer) in enumerate(pairs)
        ],
    }
    task = next(line.split()[1] for line in recipe.read_text().splitlines() if line.startswith("task:"))
    write_jsonl("rows.jsonl", rows[task])
    settings = [f"model.base={tiny_llama}", f"data.train=[{project / 'rows.jsonl'}]", "model.revision=null"]
    settings += ["data.validation=0.2", "data.mixing=null"]
    ended = tunesmith("plan", recipe, *(part for s in settings for part in ("--set", s)), cwd=project)
    assert ended.returncode == 0, ended.stderr
    assert "total_steps" in ended.stdout


# --- existing runs


def test_runs_and_their_status_are_listed(tmp_path, make_run):
    make_run("bot")
    make_run("lost", phase="failed")
    listed = tunesmith("runs", cwd=tmp_path).stdout
    assert "bot" in listed
    assert "failed" in listed
    rows = json.loads(tunesmith("runs", "--json", cwd=tmp_path).stdout)
    assert {row["name"]: row["phase"] for row in rows} == {"bot": "done", "lost": "failed"}
    done = tunesmith("status", "bot", cwd=tmp_path).stdout
    assert "3.2500" in done
    assert "1.7500" in done
    status = json.loads(tunesmith("status", "bot", "--json", cwd=tmp_path).stdout)
    assert status["evaluation"]["after"]["loss"] == 1.75
    assert status["phase"] == "done"
    assert "no runs" in tunesmith("runs", tmp_path / "nowhere").stdout


def test_the_status_of_a_sweep_lists_its_runs_by_name(tmp_path, make_run):
    folder = tmp_path / "sweep"
    folder.mkdir()
    for name, phase in (("000", "failed"), ("001", "done"), ("002", "done")):
        make_run(f"run-{name}", phase=phase).root.rename(folder / name)
    shown = tunesmith("status", "sweep", cwd=tmp_path).stdout
    assert "3 runs: 1 failed, 2 done" in shown
    assert shown.index("000") < shown.index("001") < shown.index("002")
    as_json = json.loads(tunesmith("status", folder, "--json").stdout)
    assert as_json["phases"] == {"failed": 1, "done": 2}
    assert [row["name"] for row in as_json["runs"]] == ["000", "001", "002"]
    assert "pass one of its 3 runs" in rejection("report", "sweep", cwd=tmp_path)


@pytest.mark.parametrize("name", ["n" * 256, "ü" * 200])
def test_a_run_directory_whose_name_is_too_long_is_rejected_before_anything_is_created(project, name):
    before = sorted(project.iterdir())
    for more in ([], ["--dry-run"]):
        error = rejection("train", "recipe.yaml", "--run-dir", f"runs/{name}", *more, cwd=project)
        assert "bytes long, the file system allows 255" in error
        assert "choose a shorter --run-dir" in error
    assert sorted(project.iterdir()) == before
    assert "bytes long" in rejection("status", name, cwd=project)


def test_following_a_finished_run_exits(tmp_path, make_run):
    make_run("bot")
    ended = tunesmith("status", "bot", "--follow", cwd=tmp_path)
    assert ended.returncode == 0
    assert "1.7500" in ended.stdout


@pytest.mark.parametrize("command", ["resume", "status", "report", "prove", "export"])
def test_an_unknown_run_is_reported_with_the_existing_runs(tmp_path, make_run, command):
    make_run("support-bot")
    error = rejection(command, "suport-bot", cwd=tmp_path)
    assert "runs here: support-bot" in error


def test_a_finished_run_is_not_trained_again(tmp_path, make_run):
    run = make_run("bot")
    events = run.events.read_bytes()
    ended = tunesmith("resume", "bot", cwd=tmp_path)
    assert ended.returncode == 0
    assert "nothing to train" in ended.stdout
    assert run.events.read_bytes() == events


def test_a_damaged_plan_is_reported_without_a_traceback(tmp_path, make_run):
    run = make_run("bot", phase="failed")
    run.plan.write_text(run.plan.read_text()[:100])
    assert "plan.json is damaged" in rejection("resume", "bot", cwd=tmp_path)


def test_a_second_process_on_the_same_run_is_rejected(tmp_path, make_run):
    from tunesmith.rundir.lock import run_lock

    with run_lock(make_run("bot", phase="failed")):
        assert f"pid {os.getpid()}" in rejection("resume", "bot", cwd=tmp_path)


# --- unexpected errors

FAILING = """
import sys
from tunesmith.launcher.runs import find
def fail(*_):
    raise {error}
find.list_runs = fail
sys.argv = ["tunesmith", "runs"]
from tunesmith.cli.main import main
main()
"""


def ended_with(error: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = FAILING.format(error=error)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )


def test_an_unexpected_exception_gives_one_message_and_a_log_file(tmp_path):
    ended = ended_with("ZeroDivisionError('by zero')", TUNESMITH_CACHE=str(tmp_path))
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "ZeroDivisionError: by zero" in ended.stderr
    (log,) = (tmp_path / "crashes").iterdir()
    assert str(log) in ended.stderr
    assert "Traceback" in log.read_text()


def test_a_full_disk_is_reported_without_a_crash_log(tmp_path):
    ended = ended_with("OSError(28, 'No space left on device', '/data/x')", TUNESMITH_CACHE=str(tmp_path))
    assert ended.returncode == 1
    assert "the disk is full" in ended.stderr
    assert "/data/x" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_keyboard_interrupt_exits_without_output():
    ended = ended_with("KeyboardInterrupt")
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr


def test_a_closed_pipe_causes_no_traceback(tmp_path, make_run):
    for number in range(3):
        make_run(f"bot-{number}")
    process = subprocess.Popen([str(COMMAND), "runs"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.wait()
