"""The house's rules, held by reading every product file: who may import whom, and what no file may contain."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What a room may import when it is imported itself: other rooms, and packages from outside the standard library.
# What stands in tunesmith/ itself (errors, intervals, the version) is open to all.
ROOMS = {
    "tunesmith": set(),
    "configs": {"pydantic", "yaml"},
    "rundir": set(),
    "data": {"configs", "rundir", "numpy", "tokenizers", "jinja2", "pydantic"},
    "kernels": {"torch", "triton"},
    "modeling": {
        *("configs", "kernels", "torch", "transformers", "peft", "safetensors", "numpy", "huggingface_hub"),
        *("accelerate", "bitsandbytes"),
    },
    "evaluation": {"configs", "rundir", "data", "kernels", "modeling", "torch", "numpy", "safetensors", "lm_eval"},
    "training": {
        *("configs", "rundir", "data", "kernels", "modeling", "evaluation"),
        *("torch", "numpy", "safetensors", "transformers", "peft", "pydantic", "yaml", "deepspeed"),
    },
    "report": {"configs", "rundir", "data", "numpy", "pydantic"},
    "launcher": {"configs", "rundir", "data", "report", "slurm", "typer", "click", "rich", "yaml", "pydantic", "numpy"},
    "slurm": set(),
    "serving": {
        *("configs", "rundir", "data", "report", "launcher", "pydantic", "yaml", "typer", "rich", "fsspec", "httpx"),
        *(
            "fastapi",
            "starlette",
            "uvicorn",
            "python_multipart",
            "sqlalchemy",
            "alembic",
            "openai",
            "anyio",
            "numpy",
            "jinja2",
        ),
    },
    # The inference process, which alone loads torch; the rest of serving/ names it inside functions at most.
    "serving/engine/model": {
        *("configs", "rundir", "data", "kernels", "modeling", "launcher", "serving"),
        *("torch", "transformers", "peft", "safetensors", "numpy", "llguidance"),
    },
}
HOUSE = {room for room in ROOMS if "/" not in room}
# Rooms that stay free of these packages also inside functions: `plan`, `data check`, `status`, `report` answer at once.
NEVER = {
    "configs": {"torch", "transformers", "peft", "ray", "deepspeed"},
    "rundir": {"torch", "transformers", "peft", "ray", "deepspeed", "numpy"},
    "data": {"torch", "transformers", "peft", "deepspeed"},
    "report": {"torch", "transformers", "peft", "ray", "deepspeed"},
    "launcher": {"torch", "transformers", "peft", "deepspeed"},
    "serving": {"torch", "transformers", "peft", "deepspeed", "modeling", "kernels", "llguidance"},
}
NAMELESS = {"utils", "util", "common", "helpers", "helper", "misc"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {
    *("torch.load", "torch.save", "torch.hub.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
}
UNSAFE_KEYWORDS = {"shell", "trust_remote_code", "allow_pickle"}


def product_files() -> list[Path]:
    return sorted(path for room in HOUSE for path in (ROOT / room).rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a file or module, by its path below the root: the innermost that the table names."""
    whole = "/".join(parts)
    return max((room for room in ROOMS if f"{whole}/".startswith(f"{room}/")), key=len, default=parts[0])


def room_of_file(path: Path) -> str:
    return room_of(path.relative_to(ROOT).parts)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def own_name(path: Path) -> str:
    """The package a file belongs to: `tunesmith.training.engine` for training/engine/plain.py."""
    parts = path.relative_to(ROOT).parent.parts
    return ".".join(parts if parts[0] == "tunesmith" else ("tunesmith", *parts))


def imported_modules(nodes: Iterator[ast.AST], package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import statement among the nodes; relative imports are resolved."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            # `from tunesmith import launcher` names a room as well as `import tunesmith.launcher` does.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def at_module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node that runs on import: all but the bodies of functions, and what only type checkers read."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING"):
            waiting.extend(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))


def room_or_package(module: str) -> str | None:
    """What the table above speaks of: a room, or a package from outside. None where everybody may import it."""
    top, *rest = module.split(".")
    if top == "tunesmith":
        return room_of(tuple(rest)) if rest and rest[0] in HOUSE else None
    return None if top in sys.stdlib_module_names else top


def forbidden_imports(room: str, tree: ast.Module, package: str) -> list[str]:
    faults = []
    for line, module in imported_modules(at_module_level(tree), package):
        name = room_or_package(module)
        if name not in {None, room} and name not in ROOMS[room]:
            faults.append(f"line {line}: {room}/ imports {module} at module level")
    for line, module in imported_modules(ast.walk(tree), package):
        if room_or_package(module) in NEVER.get(room, set()):
            faults.append(f"line {line}: {room}/ imports {module}, which it must never do")
    return faults


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def unsafe_constructs(tree: ast.Module) -> list[str]:
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            faults.append(f"line {node.lineno}: import *")
        if isinstance(node, ast.Name) and node.id in {"eval", "exec", "compile"}:
            faults.append(f"line {node.lineno}: {node.id}")
        if isinstance(node, ast.Attribute) and (name := dotted(node)) in UNSAFE_CALLS:
            faults.append(f"line {node.lineno}: {name}")
        if isinstance(node, ast.keyword) and node.arg in UNSAFE_KEYWORDS and not is_false(node.value):
            faults.append(f"line {node.value.lineno}: {node.arg}=")
    for line, module in imported_modules(ast.walk(tree), "tunesmith"):
        if module.split(".")[0] in PICKLES or module in UNSAFE_CALLS:
            faults.append(f"line {line}: import of {module}")
    return faults


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def require_none(check, files: list[Path]) -> None:
    assert len(files) > 20
    if found := [f"{path.relative_to(ROOT)} {fault}" for path in files for fault in check(path)]:
        pytest.fail("\n".join(found), pytrace=False)


def test_rooms_import_only_what_the_table_allows():
    def check(path: Path) -> list[str]:
        return forbidden_imports(room_of_file(path), parsed(path), own_name(path))

    require_none(check, product_files())


def test_no_file_holds_an_unsafe_construct():
    require_none(lambda path: unsafe_constructs(parsed(path)), product_files())


def test_every_folder_with_code_is_a_room_of_the_table():
    outside = {"tests", "typings", "tools", "demo", "benchmarks", "build", "dist", "models", "runs"}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert {name for name in folders if not name.startswith(".")} - outside <= HOUSE


def test_kernels_is_never_a_regular_package():
    """transformers imports any regular package called `kernels` that it finds, and then breaks."""
    assert (ROOT / "kernels").is_dir()
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_init_files_are_empty():
    inits = [path for path in product_files() if path.name == "__init__.py" and path.parent.name != "tunesmith"]
    assert inits
    assert not [str(path) for path in inits if path.read_text(encoding="utf-8").strip()]


def test_no_module_without_a_name_of_its_own():
    assert not [str(path) for path in product_files() if path.stem in NAMELESS or path.parent.name in NAMELESS]


LOADED = "import sys, importlib; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sorted(sys.modules))"


def modules_after_importing(*names: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", LOADED, *names], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {name.split(".")[0] for name in result.stdout.split()}


def test_the_command_line_loads_nothing_heavy():
    loaded = modules_after_importing("tunesmith.cli.main")
    assert "typer" in loaded
    assert not loaded & {"torch", "ray", "transformers", "deepspeed", "peft", "datasets", "accelerate", "bitsandbytes"}
    assert not loaded & {"fastapi", "uvicorn", "sqlalchemy", "alembic", "openai", "httpx"}


@pytest.mark.parametrize("room", ["configs", "rundir", "data", "report", "serving"])
def test_rooms_of_plain_facts_load_no_torch(room):
    """Counted in a fresh process, so that a detour over a third package is seen as well."""
    files = [path for path in product_files() if room_of_file(path) == room and path.stem != "__init__"]
    names = [".".join(("tunesmith", *path.relative_to(ROOT).with_suffix("").parts)) for path in files]
    assert names
    loaded = modules_after_importing(*names)
    assert not loaded & {"torch", "transformers", "ray", "deepspeed", "peft"}


def test_a_worker_that_does_not_need_deepspeed_does_not_load_it():
    """Nor torch's compiler, which bitsandbytes would load for functions that it compiles without a word."""
    names = "tunesmith.training.worker", "tunesmith.training.engine.build", "tunesmith.training.export.export"
    result = subprocess.run(
        [sys.executable, "-c", LOADED, *names], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(result.stdout.split())
    assert "peft.tuners.lora" in loaded
    assert not loaded & {"deepspeed", "torch._inductor.compile_fx"}
    assert not result.stderr


PLANTED = [
    ("rundir", "import numpy", "numpy"),
    ("rundir", "from tunesmith.configs import plan", "tunesmith.configs"),
    ("data", "def read():\n    import torch", "torch"),
    ("data", "class A:\n    from transformers import AutoTokenizer", "transformers"),
    ("launcher", "from tunesmith.training import worker", "tunesmith.training"),
    ("launcher", "from ..training import worker", "tunesmith.training"),
    ("training", "try:\n    import tunesmith.cli.main\nexcept ImportError:\n    pass", "tunesmith.launcher"),
    ("kernels", "if True:\n    import transformers", "transformers"),
    ("launcher", "if TYPE_CHECKING:\n    pass\nelse:\n    from tunesmith.training import loop", "tunesmith.training"),
    ("data", "if TYPE_CHECKING:\n    import torch", "torch"),
    ("serving", "def serve():\n    import torch", "torch"),
    ("serving", "def serve():\n    from tunesmith.modeling import load", "tunesmith.modeling"),
    ("serving", "from tunesmith.serving.engine.model import base", "tunesmith.serving.engine.model"),
    ("serving/engine/model", "from tunesmith.training import worker", "tunesmith.training"),
]


@pytest.mark.parametrize(("room", "source", "named"), PLANTED)
def test_a_planted_import_is_found(room, source, named):
    faults = forbidden_imports(room, ast.parse(source), f"tunesmith.{room}")
    assert faults
    assert named in faults[0]


def test_what_is_allowed_passes():
    source = "import json\nimport torch\nfrom tunesmith.errors import RunFault\nfrom tunesmith.configs.plan import Plan"
    assert forbidden_imports("training", ast.parse(source), "tunesmith.training") == []
    late = "def train():\n    from tunesmith.training import worker"
    assert forbidden_imports("launcher", ast.parse(late), "tunesmith.launcher") == []
    typed = "if TYPE_CHECKING:\n    from tunesmith.evaluation import standalone"
    assert forbidden_imports("launcher", ast.parse(typed), "tunesmith.launcher") == []


@pytest.mark.parametrize(
    "source",
    [
        "from os import *",
        "x = eval('1')",
        "exec('1')",
        "import pickle",
        "def f():\n    from pickle import loads",
        "torch.load('a')",
        "from torch import load",
        "yaml.load(text, Loader=yaml.FullLoader)",
        "subprocess.run('ls', shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "np.load('a', allow_pickle=True)",
    ],
)
def test_a_planted_unsafe_construct_is_found(source):
    assert unsafe_constructs(ast.parse(source))


def test_harmless_lookalikes_pass():
    source = "model.eval()\nyaml.safe_load(text)\nre.compile('a')\nf(trust_remote_code=False)\nsubprocess.run(['ls'])"
    assert unsafe_constructs(ast.parse(source)) == []
