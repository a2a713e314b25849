"""A wheel holds every package with its data files, and works where there is no checkout."""

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import openai
import pydantic
import pytest

from tests.selection import needs

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
PACKAGES = PYPROJECT["tunesmith"]["packages"]
DATA_FILES = {".yaml", ".sh", ".css", ".js", ".jinja", ".html"}


def tracked_files() -> list[Path]:
    """What git knows of and is on disk, relative to the root: build leftovers and editors' files stay out."""
    result = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout: there is no list of the files that belong to the project")
    return [Path(name) for name in result.stdout.split("\0") if name and (ROOT / name).is_file()]


def product_files() -> set[str]:
    """Modules and data files of the packages, as they are named inside a wheel."""
    inside = {path for path in tracked_files() if path.parts[0] in PACKAGES and path.suffix in {".py", *DATA_FILES}}
    return {f"tunesmith/{path.as_posix()}" for path in inside}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: building in the checkout would leave folders behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in tracked_files():
        if path.parts[0] not in {"tests", "typings"}:
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, source / path)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out)]
    result = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return next(out.glob("tunesmith-*.whl"))


def test_a_wheel_holds_every_module_and_data_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = product_files()
    assert len(expected) > 20
    assert not expected - names
    assert "tunesmith/kernels/__init__.py" not in names
    assert not [name for name in names if name.split("/")[0] not in {"tunesmith"} and ".dist-info/" not in name]
    metadata = next(name for name in names if name.endswith("entry_points.txt"))
    assert "tunesmith = tunesmith.cli.main:main" in zipfile.ZipFile(wheel).read(metadata).decode()


def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    """Unpacked elsewhere, every module is found there and the command line answers."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in product_files()
        if name.endswith(".py")
    )
    code = (
        "import sys, importlib.util as util\n"
        # An editable install would answer for what the wheel lacks.
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]\n"
        "import tunesmith\n"
        "root = sys.argv[1]\n"
        "assert tunesmith.__file__.startswith(root), tunesmith.__file__\n"
        "assert len(tunesmith.__path__) == 1, list(tunesmith.__path__)\n"
        "for name in sys.argv[2:]:\n"
        "    assert util.find_spec(name).origin.startswith(root), name\n"
        "import tunesmith.cli.main as cli\n"
        "assert cli.__file__.startswith(root), cli.__file__\n"
        "sys.argv = ['tunesmith', '--help']\n"
        "cli.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(site), *modules],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "train" in result.stdout


@pytest.fixture(scope="module")
@needs("slow")
def bare_environment(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel and what it depends on, and no checkout: the `bin` folder of it."""
    place = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    # The packages of this environment, without its .pth files: those of an editable install would bring the checkout.
    (site / "dependencies.pth").write_text(f"{Path(pydantic.__file__).parents[1]}\n")
    command = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "--no-deps"]
    subprocess.run([*command, "--no-index", "--quiet", str(wheel)], check=True)
    return place / "bin"


def test_the_wheel_plans_trains_and_serves_in_a_bare_environment(
    bare_environment, tmp_path, tiny_llama, chat_rows, free_port
):
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows))
    recipe = {
        "name": "bare",
        "model": {"base": str(tiny_llama)},
        "method": {"kind": "lora", "lora_rank": 4},
        "data": {"train": ["chats.jsonl"], "validation": 0.2, "max_seq_len": 256},
        "optimization": {"global_batch_size": 16, "epochs": 1},
        "precision": "fp32",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["TUNESMITH_CACHE"] = str(tmp_path / "cache")

    def tunesmith(*arguments: str) -> str:
        command = [str(bare_environment / "tunesmith"), *arguments]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-2000:]
        return ended.stdout

    code = "import tunesmith.training.worker as worker; print(worker.__file__)"
    packed = subprocess.run(
        [bare_environment / "python", "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(packed.stdout.strip()).is_relative_to(bare_environment.parent)
    steps = json.loads(tunesmith("plan", "recipe.yaml", "--json"))["batch"]["total_steps"]
    assert steps > 0
    result = json.loads(tunesmith("train", "recipe.yaml", "--json"))
    assert (result["exit_code"], result["step"]) == (0, steps)
    assert (tmp_path / "runs" / "bare" / "export" / "adapter_model.safetensors").is_file()
    command = [bare_environment / "tunesmith", "serve", "--base", f"tiny={tiny_llama}", "--port", str(free_port)]
    with open(tmp_path / "serve.log", "wb") as log:
        server = subprocess.Popen(
            [*command, "--home", str(tmp_path / "home")], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{free_port}/v1", api_key="unused", max_retries=30)
        deadline = time.monotonic() + 120
        while True:
            try:
                assert [model.id for model in client.models.list()] == ["tiny"]
                break
            except openai.APIConnectionError:
                assert server.poll() is None, (tmp_path / "serve.log").read_text()
                assert time.monotonic() < deadline
        chat = [{"role": "user", "content": "Hello"}]
        answer = client.chat.completions.create(model="tiny", messages=chat, max_tokens=4)  # type: ignore[arg-type]
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
    finally:
        server.terminate()
        server.wait(300)
