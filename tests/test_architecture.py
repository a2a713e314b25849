"""Rules of the architecture, checked by reading every product file: who may import whom, what no file may contain."""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import pytest

from tunesmith.configs.recipe import Recipe
from tunesmith.configs.tasks import TASKS, TaskName

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
PACKAGES = {"tunesmith", *PYPROJECT["tunesmith"]["packages"]}

# The request and response types of inference/ and what works on text alone: the API process imports them.
TORCH_FREE = {
    f"inference/{name}"
    for name in ("types", "stop", "grammar", "tool_calls", "text_stream", "rendering", "thinking", "answer_format")
}

# What a package may import when it is imported itself: other packages of the project, and packages from outside the
# standard library. What is in tunesmith/ itself (errors, os_errors, intervals, threads, the version) is open to all.
ALLOWED = {
    "tunesmith": set(),
    "configs": {"pydantic", "yaml"},
    "rundir": set(),
    "data": {"configs", "rundir", "numpy", "tokenizers", "jinja2", "pydantic"},
    "kernels": {"torch", "triton", "kernels/resources"},
    # What each kernel needs and each GPU has, without torch: the launcher reads it too.
    "kernels/resources": set(),
    "modeling": {
        *("configs", "kernels", "kernels/resources", "modeling/base_model"),
        *("torch", "transformers", "peft", "safetensors", "numpy", "accelerate", "bitsandbytes"),
    },
    # What a base model is, without torch: the launcher and the data preparation read it too.
    "modeling/base_model": {"configs", "numpy", "huggingface_hub"},
    "inference": {
        *("configs", "data", "kernels", "modeling", "modeling/base_model", *TORCH_FREE),
        *("torch", "transformers", "peft", "safetensors", "numpy", "llguidance"),
    },
    **{name: {"configs", "data", *TORCH_FREE} for name in TORCH_FREE},
    "evaluation": {
        *("configs", "rundir", "data", "kernels", "modeling", "modeling/base_model", "inference", *TORCH_FREE),
        *("torch", "numpy", "safetensors", "lm_eval"),
    },
    "training": {
        *("configs", "rundir", "data", "kernels", "modeling", "modeling/base_model", "inference", "evaluation"),
        *TORCH_FREE,
        *("torch", "numpy", "safetensors", "transformers", "peft", "pydantic", "yaml", "deepspeed"),
    },
    # Only the command `export --format gguf` imports it, after it has found the package gguf.
    "training/export/gguf": {
        *("configs", "rundir", "data", "modeling", "modeling/base_model", "evaluation", "training"),
        *("gguf", "torch", "numpy", "safetensors", "transformers", "tokenizers"),
    },
    "report": {"configs", "rundir", "data", "numpy", "pydantic"},
    # Readers of the run directory; a tracker's own package is imported in its process only, inside functions.
    "tracking": {"configs", "rundir"},
    "launcher": {
        *("configs", "rundir", "data", "report", "tracking", "slurm", "modeling/base_model", "kernels/resources"),
        *("typer", "click", "rich", "yaml", "pydantic", "numpy", "packaging"),
    },
    "slurm": set(),
    "serving": {
        *("configs", "rundir", "data", "report", "launcher", "pydantic", "yaml", "typer", "rich", "fsspec", "httpx"),
        "prometheus_client",
        *("fastapi", "starlette", "uvicorn", "python_multipart", "sqlalchemy", "alembic", "openai", "anyio", "numpy"),
        *("jinja2", "h11", *TORCH_FREE),
    },
    # The loop of the inference process, which alone loads torch: process.py imports it inside a function.
    "serving/engine/service": {"rundir", "launcher", "serving", "inference", "torch", *TORCH_FREE},
    # The commands are above all else; what is heavy they import inside functions.
    "cli": {"configs", "rundir", "data", "report", "launcher", "serving", "pydantic", "typer", "click", "rich"},
}
# Packages of the project that stay free of these also inside functions: `plan`, `data check`, `status` and `report`
# answer at once.
NEVER = {
    "configs": {"torch", "transformers", "peft", "ray", "deepspeed"},
    "rundir": {"torch", "transformers", "peft", "ray", "deepspeed", "numpy"},
    "data": {"torch", "transformers", "peft", "deepspeed"},
    "modeling/base_model": {"torch", "transformers", "peft", "deepspeed"},
    "report": {"torch", "transformers", "peft", "ray", "deepspeed"},
    "tracking": {"torch", "transformers", "peft", "ray", "deepspeed"},
    "launcher": {"torch", "transformers", "peft", "deepspeed", "serving", "cli"},
    "serving": {"torch", "transformers", "peft", "deepspeed", "modeling", "kernels", "inference", "llguidance", "cli"},
    "inference": {"training", "evaluation", "launcher", "serving", "cli"},
    **{name: {"torch", "transformers", "peft", "deepspeed", "modeling", "kernels", "inference"} for name in TORCH_FREE},
    "training": {"launcher", "serving", "cli"},
    "evaluation": {"training", "launcher", "serving", "cli"},
    "modeling": {"rundir", "data", "inference", "training", "evaluation", "launcher", "serving", "cli"},
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
    return sorted(path for package in sorted(PACKAGES) for path in (ROOT / package).rglob("*.py"))


def package_of(parts: tuple[str, ...]) -> str:
    """The package of a file or module, by its path below the root: the innermost that the table names. Files that the
    table names are packages of their own."""
    whole = "/".join(parts)
    return max((name for name in ALLOWED if f"{whole}/".startswith(f"{name}/")), key=len, default=parts[0])


def package_of_file(path: Path) -> str:
    return package_of(path.relative_to(ROOT).with_suffix("").parts)


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
            # `from tunesmith import launcher` names a package as well as `import tunesmith.launcher` does.
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


def package_or_distribution(module: str) -> str | None:
    """An entry of the table above, or a distribution from outside. None where everybody may import it."""
    top, *rest = module.split(".")
    if top == "tunesmith":
        return package_of(tuple(rest)) if rest and rest[0] in PACKAGES else None
    return None if top in sys.stdlib_module_names else top


def forbidden_imports(package: str, tree: ast.Module, module_name: str) -> list[str]:
    faults = []
    for line, module in imported_modules(at_module_level(tree), module_name):
        name = package_or_distribution(module)
        if name not in {None, package} and name not in ALLOWED[package]:
            faults.append(f"line {line}: {package}/ imports {module} at module level")
    for line, module in imported_modules(ast.walk(tree), module_name):
        if package_or_distribution(module) in NEVER.get(package, set()):
            faults.append(f"line {line}: {package}/ imports {module}, which it must never do")
    return faults


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


READS_PICKLES = ROOT / "modeling" / "loading" / "pickles.py"


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
    if faults := [f"{path.relative_to(ROOT)} {fault}" for path in files for fault in check(path)]:
        pytest.fail("\n".join(faults), pytrace=False)


def test_packages_import_only_what_the_table_allows():
    def check(path: Path) -> list[str]:
        return forbidden_imports(package_of_file(path), parsed(path), own_name(path))

    require_none(check, product_files())


def test_no_file_holds_an_unsafe_construct():
    others = [path for path in product_files() if path != READS_PICKLES]
    require_none(lambda path: unsafe_constructs(parsed(path)), others)


def test_the_one_reader_of_pickles_reads_only_tensors():
    """`tunesmith convert` runs it in a restricted process."""
    assert [fault.partition(": ")[2] for fault in unsafe_constructs(parsed(READS_PICKLES))] == ["torch.load"]
    calls = [node for node in ast.walk(parsed(READS_PICKLES)) if isinstance(node, ast.Call)]
    (load,) = [call for call in calls if isinstance(call.func, ast.Attribute) and dotted(call.func) == "torch.load"]
    (only,) = [keyword.value for keyword in load.keywords if keyword.arg == "weights_only"]
    assert isinstance(only, ast.Constant)
    assert only.value is True


def test_every_folder_with_code_is_a_package_of_the_table():
    outside = {"tests", "typings", "tools", "demo", "benchmarks", "build", "dist", "models", "runs"}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert {name for name in folders if not name.startswith(".")} - outside <= PACKAGES


def test_the_package_list_is_one():
    """pyproject.toml names the packages once; what must repeat them (pyright, typings/) is compared with it."""
    assert {name for name in ALLOWED if "/" not in name} == PACKAGES
    data_only = {"slurm"}
    assert set(PYPROJECT["pyright"]["include"]) | data_only == PACKAGES
    links = {path.name for path in (ROOT / "typings" / "tunesmith").iterdir() if path.is_symlink() and path.is_dir()}
    assert links == PACKAGES - {"tunesmith"}


def module_names() -> dict[str, Path]:
    """Dotted names below `tunesmith` of every product file but the `__init__` files, which are empty."""
    files = [path for path in product_files() if path.stem != "__init__" and path.parts[len(ROOT.parts)] != "tunesmith"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


def import_graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Who imports whom, also inside functions; what only type checkers read is left out."""
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        imported = set()
        for _, target in imported_modules(without_type_checking(parsed(path)), own_name(path)):
            parts = target.split(".")[1:]
            imported |= {".".join(parts[:size]) for size in (len(parts), len(parts) - 1)} & modules.keys()
        graph[name] = imported - {name}
    return graph


def without_type_checking(tree: ast.Module) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        typed = isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING")
        waiting.extend(node.orelse if typed else ast.iter_child_nodes(node))


def sibling_graphs(graph: dict[str, set[str]]) -> dict[str, dict[str, set[str]]]:
    """For every folder, who of its files and sub-packages imports which other of them."""
    graphs: dict[str, dict[str, set[str]]] = {}
    for source, targets in graph.items():
        for target in targets:
            a, b = source.split("."), target.split(".")
            depth = next(index for index, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1])
            graphs.setdefault(".".join(a[:depth]), {}).setdefault(a[depth], set()).add(b[depth])
    return graphs


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """What is left once everything without imports is taken away, again and again."""
    left = {name: set(targets) for name, targets in graph.items()}
    while free := {target for targets in left.values() for target in targets} - left.keys() or {
        name for name, targets in left.items() if not targets
    }:
        left = {name: targets - free for name, targets in left.items() if name not in free}
    return sorted(left)


def test_no_import_cycles_between_files_or_sub_packages():
    graph = import_graph(module_names())
    assert sum(map(len, graph.values())) > 1000
    assert not cycles(graph)
    cycles_by_folder = {folder or "the root": cycles(siblings) for folder, siblings in sibling_graphs(graph).items()}
    assert not {folder: names for folder, names in cycles_by_folder.items() if names}


def test_a_planted_cycle_is_found():
    graph = {"data.rows.labels": {"data.cache"}, "data.cache": {"data.rows.split"}, "data.rows.split": set()}
    assert cycles(graph) == []
    assert cycles(sibling_graphs(graph)["data"]) == ["cache", "rows"]


LOSS_CLASSES = {
    node.name
    for path in sorted((ROOT / "modeling" / "losses").glob("*.py"))
    for node in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(node, ast.ClassDef) and node.name.endswith("Loss")
}
ALL_CAUSAL = {"CausalLoss"}
"""The class that every loss extends: no task's own."""


def task_literals(node: ast.AST) -> set[str]:
    """Names of tasks that stand in an expression as they are."""
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and part.value in TASKS}


def is_a_task(node: ast.AST) -> bool:
    """Whether an expression reads a task's name: `task`, `plan.recipe.task`, `event["task"]`, `event.get("task")`."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id == "task":
            return True
        if isinstance(part, ast.Attribute) and part.attr == "task":
            return True
        if isinstance(part, ast.Constant) and part.value == "task":
            return True
    return False


def compared_tasks(tree: ast.Module) -> list[str]:
    """Comparisons of a task with a literal: == != in not in, also with a constant of the module, and match."""
    constants = {
        target.id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Constant | ast.Tuple | ast.List | ast.Set | ast.Call)
        for target in statement.targets
        if isinstance(target, ast.Name) and task_literals(statement.value)
    }
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = [constants[side.id] for side in sides if isinstance(side, ast.Name) and side.id in constants]
            literals = set().union(*map(task_literals, [*sides, *named]))
            if literals and any(is_a_task(side) for side in sides if not isinstance(side, ast.Constant)):
                faults.append(f"line {node.lineno}: a task is compared with {', '.join(sorted(literals))}")
        if isinstance(node, ast.Match) and is_a_task(node.subject):
            literals = set().union(*(task_literals(case.pattern) for case in node.cases))
            faults += [f"line {node.lineno}: a task is matched with {', '.join(sorted(literals))}"] if literals else []
    return faults


def switches_on_losses(tree: ast.Module) -> list[str]:
    """isinstance, issubclass, type(x) is and class patterns with the loss of a task."""
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) in {"isinstance", "issubclass"}:
            named = node.args[1:]
        elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Call) and dotted(node.left.func) == "type":
            named = node.comparators
        elif isinstance(node, ast.MatchClass):
            named = [node.cls]
        else:
            continue
        classes = {
            dotted(part).split(".")[-1] for item in named for part in ast.walk(item) if isinstance(part, ast.expr)
        }
        if switched := classes & (LOSS_CLASSES - ALL_CAUSAL):
            faults.append(f"line {node.lineno}: a switch on {', '.join(sorted(switched))}")
    return faults


def test_no_task_is_compared_with_a_literal():
    own = ROOT / "configs" / "tasks.py"
    require_none(lambda path: compared_tasks(parsed(path)), [path for path in product_files() if path != own])


def test_no_switch_on_the_loss_of_a_task():
    assert {"CausalLoss", "ClassificationLoss", "PreferenceLoss", "SequenceLoss"} <= LOSS_CLASSES
    folder = ROOT / "modeling" / "losses"
    require_none(
        lambda path: switches_on_losses(parsed(path)), [path for path in product_files() if path.parent != folder]
    )


@pytest.mark.parametrize(
    "source",
    [
        "if task == 'chat': pass",
        "if 'seq2seq' != plan.recipe.task: pass",
        "paired = recipe.task == 'preference'",
        "if plan.recipe.task in ('classification', 'seq2seq'): pass",
        "if (task := recipe.task) not in {'chat', 'text'}: pass",
        "BY_ROW = ('classification', 'preference')\nif recipe.task in BY_ROW: pass",
        "if event['task'] == 'chat': pass",
        "if event.get('task') == 'chat': pass",
        "match recipe.task:\n    case 'chat' | 'text':\n        pass",
    ],
)
def test_a_planted_comparison_of_a_task_is_found(source):
    assert compared_tasks(ast.parse(source))


def test_what_is_no_comparison_of_a_task_passes():
    source = """
if recipe.task_facts.is_causal: pass
task = "chat" if recipe.task_facts.is_paired else recipe.task
if other != task: pass
if part.get("type") != "text": pass
encoder = ENCODERS[task]
if task is None: pass
if name == "loss" and found.task is not None: pass
"""
    assert compared_tasks(ast.parse(source)) == []


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(loss, ClassificationLoss)",
        "isinstance(loss, (int, losses.PreferenceLoss))",
        "isinstance(loss, PreferenceLoss | SequenceLoss)",
        "type(loss) is SequenceLoss",
        "match loss:\n    case PreferenceLoss():\n        pass",
    ],
)
def test_a_planted_switch_on_a_loss_is_found(source):
    assert switches_on_losses(ast.parse(source))


TASK_TABLES = {
    ("data.encoders.by_task", "ENCODERS"),
    ("data.rows.shapes.columns", "COLUMNS_OF_TASK"),
    ("modeling.losses.task_loss", "LOSSES"),
    ("evaluation.held_out", "SCORERS"),
    ("evaluation.task_answers", "ANSWERS"),
    ("evaluation.standalone", "STANDALONE"),
    ("training.export.model_card", "MODEL_CARD_SECTIONS"),
}
"""What is done for a task, where. The tables of the seam "a training objective"."""
MODEL_TABLES = {("modeling.base_model.facts", "CLASSES"), ("modeling.loading.base", "LOADERS")}


def other_keys(table: Iterable[str], expected: Iterable[str]) -> list[str]:
    return sorted(set(table) ^ set(expected))


@pytest.mark.parametrize(("module", "name"), sorted(TASK_TABLES))
def test_the_tables_of_the_tasks_have_the_same_keys(module, name):
    table = getattr(importlib.import_module(f"tunesmith.{module}"), name)
    assert other_keys(table, TASKS) == []


@pytest.mark.parametrize(("module", "name"), sorted(MODEL_TABLES))
def test_the_tables_of_the_models_have_the_same_keys(module, name):
    table = getattr(importlib.import_module(f"tunesmith.{module}"), name)
    assert other_keys(table, {task.model for task in TASKS.values()}) == []


def tables_by_task(tree: ast.Module) -> list[str]:
    """Names of the module's dictionaries whose keys are names of tasks, two or more."""
    tables = []
    for statement in tree.body:
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Dict) and isinstance(target, ast.Name):
            keys = {key.value for key in value.keys if isinstance(key, ast.Constant)}
            if len(keys & TASKS.keys()) > 1 and not keys - TASKS.keys():
                tables.append(target.id)
    return tables


def test_every_table_by_task_is_known():
    """One that is not would escape the test of equal keys."""
    forms_of_rows = {("data.rows.formats", "FORMS_OF_TASK")}
    tables = {
        (".".join(path.relative_to(ROOT).with_suffix("").parts), name)
        for path in product_files()
        for name in tables_by_task(parsed(path))
    }
    assert tables - forms_of_rows == TASK_TABLES


def test_a_planted_table_is_found_and_a_missing_key_too():
    assert tables_by_task(ast.parse('OTHER: dict[str, int] = {"chat": 1, "text": 2}')) == ["OTHER"]
    assert other_keys({"chat": 1, "text": 2}, TASKS)
    assert other_keys({**TASKS, "unknown": 1}, TASKS) == ["unknown"]


def test_the_names_of_tasks_stand_in_the_entries():
    assert tuple(TASKS) == get_args(TaskName)
    sections = {task.section for task in TASKS.values() if task.section is not None}
    assert sections <= Recipe.model_fields.keys()


def back_end_names() -> dict[str, Path]:
    """Every name of the list in launcher/clusters.py, and the folder whose modules may compare with it."""
    from tunesmith.launcher.clusters import CLUSTERS

    files = {cluster.name: Path(sys.modules[type(cluster).__module__].__file__ or "") for cluster in CLUSTERS}
    return {name: file.parent for name, file in files.items()}


def strings_of(node: ast.AST) -> set[str]:
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def back_end_switches(tree: ast.Module, names: set[str], classes: set[str]) -> list[str]:
    """Where code branches on which back end it has: comparisons with a name, look-ups by it, checks of the class."""
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            literals = {name for each in (node.left, *node.comparators) for name in literals_of(each)} & names
        elif isinstance(node, (ast.MatchValue, ast.MatchMapping)):
            literals = strings_of(node) & names
        elif isinstance(node, ast.Dict):
            literals = {name for key in node.keys if key is not None for name in literals_of(key)} & names
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in (
            "isinstance",
            "startswith",
            "endswith",
        ):
            literals = (names_in(node) & classes) | (strings_of(node) & names)
        else:
            continue
        faults += [f"line {node.lineno}: decides on {name!r}" for name in sorted(literals)]
    return faults


def literals_of(node: ast.expr) -> set[str]:
    """A string, or the strings of a tuple, list or set."""
    inner = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node]
    return {each.value for each in inner if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def names_in(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} | {
        each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)
    }


def test_no_code_asks_which_back_end_it_has():
    from tunesmith.launcher.clusters import CLUSTERS

    names = back_end_names()
    classes = {cluster.name: type(cluster).__name__ for cluster in CLUSTERS}

    def check(path: Path) -> list[str]:
        foreign = {name for name, folder in names.items() if path.resolve().parent != folder.resolve()}
        return back_end_switches(parsed(path), foreign, {classes[name] for name in foreign})

    assert {"local", "ray", "slurm"} <= names.keys()
    require_none(check, product_files())


@pytest.mark.parametrize(
    "source",
    [
        "if launch.backend == 'slurm': pass",
        "if 'ray' != on: pass",
        "wanted = backend in ('ray', 'slurm')",
        "wanted = address is not None and on not in (None, 'ray')",
        "taker = {'slurm': 'Slurm', 'ray': 'the Ray cluster'}.get(launch.backend, '')",
        "match launch.backend:\n    case 'local':\n        pass",
        "match launch.backend:\n    case 'ray' | 'slurm':\n        pass",
        "if isinstance(cluster, SlurmCluster): pass",
        "if isinstance(cluster, (local.LocalCluster, X)): pass",
        "if backend.startswith('slurm'): pass",
    ],
)
def test_a_planted_switch_on_back_ends_is_found(source):
    assert back_end_switches(ast.parse(source), {"local", "ray", "slurm"}, {"SlurmCluster", "LocalCluster"})


def test_what_only_names_a_back_end_passes():
    source = "import ray\nlaunch = Launch('slurm')\nif cluster.name == name: pass\nif to == 'auto': pass\nf(on='ray')"
    assert back_end_switches(ast.parse(source), {"local", "ray", "slurm"}, {"SlurmCluster"}) == []


# Entry points that jobs of an earlier version call while they wait in a queue.
FORWARDS = {"launcher.cli": "tunesmith.cli.main", "launcher.job": "tunesmith.cli.batch_step"}


@pytest.mark.parametrize("name", FORWARDS)
def test_entry_points_of_queued_jobs_are_forwarded(name):
    forwarded, own = (
        subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT)
        for module in (f"tunesmith.{name}", FORWARDS[name])
    )
    assert own.returncode == 0, own.stderr
    assert forwarded.returncode == 0
    assert forwarded.stdout.replace(f"tunesmith.{name}", FORWARDS[name]) == own.stdout


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


@pytest.mark.parametrize(
    "package",
    ["configs", "rundir", "data", "modeling/base_model", "report", "launcher", "serving", *sorted(TORCH_FREE)],
)
def test_packages_of_plain_facts_load_no_torch(package):
    """Counted in a fresh process, so that a detour over a third package is seen as well."""
    files = [path for path in product_files() if package_of_file(path) == package and path.stem != "__init__"]
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
    ("modeling/base_model", "def read():\n    import torch", "torch"),
    ("launcher", "def run():\n    from tunesmith.cli import train", "tunesmith.cli"),
    ("modeling", "from tunesmith.data import check", "tunesmith.data"),
    ("launcher", "from tunesmith.training import worker", "tunesmith.training"),
    ("launcher", "from ..training import worker", "tunesmith.training"),
    ("training", "try:\n    import tunesmith.cli.main\nexcept ImportError:\n    pass", "tunesmith.cli"),
    ("kernels", "if True:\n    import transformers", "transformers"),
    ("launcher", "if TYPE_CHECKING:\n    pass\nelse:\n    from tunesmith.training import loop", "tunesmith.training"),
    ("data", "if TYPE_CHECKING:\n    import torch", "torch"),
    ("serving", "def serve():\n    import torch", "torch"),
    ("serving", "def serve():\n    from tunesmith.modeling import load", "tunesmith.modeling"),
    ("serving", "def serve():\n    from tunesmith.inference import generate", "tunesmith.inference"),
    ("serving", "from tunesmith.serving.engine import service", "tunesmith.serving.engine.service"),
    ("serving/engine/service", "from tunesmith.training import worker", "tunesmith.training"),
    ("inference/types", "def read():\n    import torch", "torch"),
    ("inference/stop", "from tunesmith.inference import sampling", "tunesmith.inference"),
    ("inference", "from tunesmith.launcher.hardware import free_memory", "tunesmith.launcher"),
]


@pytest.mark.parametrize(("package", "source", "named"), PLANTED)
def test_a_planted_import_is_found(package, source, named):
    faults = forbidden_imports(package, ast.parse(source), f"tunesmith.{package.replace('/', '.')}")
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
