"""The console script in a process of its own: exit codes, messages, speed, and what it must not import."""

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
        timeout=120,
    )


def refused(*arguments: object, cwd: Path | None = None) -> str:
    """Standard error of a command that ends with 2: one message and no traceback."""
    ended = tunesmith(*arguments, cwd=cwd)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("what to do:") == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr


def loaded_modules(tmp_path: Path, *arguments: object, cwd: Path | None = None) -> tuple[set[str], int, str]:
    """Packages that a command left in sys.modules, its exit code and its output."""
    listing = tmp_path / "modules.json"
    script = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: open({str(listing)!r}, 'w').write(json.dumps(sorted(sys.modules))))\n"
        "from tunesmith.cli.main import main\nmain()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120
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
def test_help_answers_at_once(arguments):
    """Half a second of CPU time; the best of three, since other processes share the cores."""

    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert tunesmith(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_seconds() for _ in range(3)) < 0.5


def test_help_needs_none_of_what_the_commands_need(tmp_path):
    modules, code, _ = loaded_modules(tmp_path, "--help")
    assert code == 0
    assert not modules & (HEAVY | {"pydantic", "yaml", "numpy", "rich", "jinja2", "tokenizers"})


def test_plan_and_dry_run_do_without_torch(tmp_path, project):
    for arguments in (["plan", "recipe.yaml"], ["train", "recipe.yaml", "--dry-run"]):
        modules, code, output = loaded_modules(tmp_path, *arguments, cwd=project)
        assert code == 0, output
        assert "pydantic" in modules
        assert not modules & HEAVY
    assert not (project / "runs").exists()


def test_looking_at_rows_does_without_torch(tmp_path, project):
    for arguments in (
        ["data", "check", "recipe.yaml"],
        ["data", "check", "chats.jsonl"],
        ["data", "show", "recipe.yaml"],
    ):
        modules, code, output = loaded_modules(tmp_path, *arguments, cwd=project)
        assert code == 0, output
        assert not modules & HEAVY, arguments


def test_looking_at_runs_does_without_torch(tmp_path, make_run):
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
def test_every_command_explains_itself(command):
    ended = tunesmith(command, "--help")
    assert ended.returncode == 0
    assert f"tunesmith {command}" in ended.stdout


def test_the_version_is_told():
    from tunesmith import __version__

    assert tunesmith("--version").stdout == f"tunesmith {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian", "recipe.yaml"], "train"),
        (["train"], "Missing argument"),
        (["train", "recipe.yaml", "--epochs", "2"], "--epochs"),
        (["evaluate", "model"], "--data"),
        (["status"], "Missing argument"),
    ],
)
def test_wrong_usage_ends_with_2(arguments, words):
    ended = tunesmith(*arguments)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


# --- the recipe, its data and its model


@pytest.mark.parametrize("command", [["plan"], ["train"], ["train", "--dry-run"]])
def test_a_wrong_key_is_one_clear_message(project, command):
    text = (project / "recipe.yaml").read_text().replace("global_batch_size", "globl_batch_size")
    (project / "recipe.yaml").write_text(text)
    name, *flags = command
    error = refused(name, "recipe.yaml", *flags, cwd=project)
    assert "recipe.yaml:5" in error
    assert "`optimization.global_batch_size`" in error
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimization.epochs=two", "takes a whole number"),
        ("optimization.epoch=2", "did you mean `optimization.epochs`?"),
        ("data.train=[nowhere.jsonl]", "nowhere.jsonl"),
        ("model.base=./nowhere", "nowhere"),
        ("model.chat_template=nowhere.jinja", "nowhere.jinja"),
        ("data.validation=0", "early_stopping needs validation rows"),
        ("epochs", "key=value"),
    ],
)
def test_wrong_values_types_and_paths_are_refused(project, override, words):
    extra = ["--set", "evaluation.early_stopping={}"] if override == "data.validation=0" else []
    assert words in refused("plan", "recipe.yaml", "--set", override, *extra, cwd=project)


def test_a_missing_recipe_names_those_beside_it(project):
    assert "recipe.yaml" in refused("train", "recipe.yml", cwd=project)


def test_bad_rows_are_named_with_file_and_line_and_written_down(project):
    with open(project / "chats.jsonl", "a") as file:
        file.write("{broken\n")
    error = refused("train", "recipe.yaml", cwd=project)
    assert "chats.jsonl:61" in error
    rejects = project / "runs" / "tiny" / "receipts" / "rejects.jsonl"
    assert json.loads(rejects.read_text())["line"] == 61
    status = json.loads(tunesmith("status", "tiny", "--json", cwd=project).stdout)
    assert status["phase"] == "failed"
    assert "cannot be used" in status["cause"]
    (project / "chats.jsonl").write_text((project / "chats.jsonl").read_text().replace("{broken\n", ""))
    assert tunesmith("train", "recipe.yaml", "--dry-run", cwd=project).returncode == 0


@pytest.mark.parametrize("place", ["recipe.yaml", "recipe.yaml/deep", ".", "/proc/tunesmith-run"])
def test_a_run_directory_that_cannot_be_one_is_refused(project, place):
    error = refused("train", "recipe.yaml", "--run-dir", place, cwd=project)
    assert "--run-dir" in error


# --- plans


def test_a_plan_as_json_is_what_a_run_would_keep(project):
    from tunesmith.configs.plan import Plan

    ended = tunesmith("plan", "recipe.yaml", "--json", "--set", "optimization.epochs=3", cwd=project)
    plan = Plan.model_validate_json(ended.stdout)
    assert plan.recipe.optimization.epochs == 3
    assert plan.recipe_file == str(project / "recipe.yaml")
    dry = tunesmith("train", "recipe.yaml", "--dry-run", "--json", "--set", "optimization.epochs=3", cwd=project)
    assert Plan.model_validate_json(dry.stdout).batch == plan.batch


def test_a_plan_is_shown_with_every_reason(project):
    from tunesmith.configs.plan import Plan

    shown = tunesmith("plan", "recipe.yaml", cwd=project).stdout
    plan = Plan.model_validate_json(tunesmith("plan", "recipe.yaml", "--json", cwd=project).stdout)
    for choice in plan.choices:
        assert choice.key in shown
    assert "packed into" in shown
    assert "OMP_NUM_THREADS" in shown


RECIPES = sorted((Path(__file__).parents[2] / "configs" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", [p for p in RECIPES if "task: seq2seq" not in p.read_text()], ids=lambda p: p.stem)
def test_every_shipped_recipe_is_planned(project, recipe, tiny_llama, write_jsonl, chat_rows):
    """With a tiny model and rows of the recipe's own task in the place of what it names."""
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
    settings.append("data.validation=0.2")
    ended = tunesmith("plan", recipe, *(part for s in settings for part in ("--set", s)), cwd=project)
    assert ended.returncode == 0, ended.stderr
    assert "total_steps" in ended.stdout


# --- runs that are there


def test_runs_and_their_standing_are_told(tmp_path, make_run):
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
    standing = json.loads(tunesmith("status", "bot", "--json", cwd=tmp_path).stdout)
    assert standing["evaluation"]["after"]["loss"] == 1.75
    assert standing["phase"] == "done"
    assert "no runs" in tunesmith("runs", tmp_path / "nowhere").stdout


def test_following_a_run_that_has_ended_ends(tmp_path, make_run):
    make_run("bot")
    ended = tunesmith("status", "bot", "--follow", cwd=tmp_path)
    assert ended.returncode == 0
    assert "1.7500" in ended.stdout


@pytest.mark.parametrize("command", ["resume", "status", "report", "prove", "export"])
def test_a_run_that_is_not_there_is_named_with_those_that_are(tmp_path, make_run, command):
    make_run("support-bot")
    error = refused(command, "suport-bot", cwd=tmp_path)
    assert "runs here: support-bot" in error


def test_a_finished_run_is_not_trained_again(tmp_path, make_run):
    run = make_run("bot")
    events = run.events.read_bytes()
    ended = tunesmith("resume", "bot", cwd=tmp_path)
    assert ended.returncode == 0
    assert "nothing is trained again" in ended.stdout
    assert run.events.read_bytes() == events


def test_a_damaged_plan_is_refused_without_a_traceback(tmp_path, make_run):
    run = make_run("bot", phase="failed")
    run.plan.write_text(run.plan.read_text()[:100])
    assert "plan.json is damaged" in refused("resume", "bot", cwd=tmp_path)


def test_two_on_one_run_are_refused(tmp_path, make_run):
    from tunesmith.rundir.lock import run_lock

    with run_lock(make_run("bot", phase="failed")):
        assert f"pid {os.getpid()}" in refused("resume", "bot", cwd=tmp_path)


# --- what nobody foresaw

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
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
    )


def test_an_unforeseen_exception_is_one_message_and_a_log(tmp_path):
    ended = ended_with("ZeroDivisionError('by zero')", TUNESMITH_CACHE=str(tmp_path))
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "ZeroDivisionError: by zero" in ended.stderr
    (log,) = (tmp_path / "crashes").iterdir()
    assert str(log) in ended.stderr
    assert "Traceback" in log.read_text()


def test_a_full_disk_is_no_crash(tmp_path):
    ended = ended_with("OSError(28, 'No space left on device', '/data/x')", TUNESMITH_CACHE=str(tmp_path))
    assert ended.returncode == 1
    assert "the disk is full" in ended.stderr
    assert "/data/x" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_quietly():
    ended = ended_with("KeyboardInterrupt")
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr


def test_a_reader_that_goes_away_harms_nothing(tmp_path, make_run):
    for number in range(3):
        make_run(f"bot-{number}")
    process = subprocess.Popen([str(COMMAND), "runs"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.wait()
