"""No rank decides alone: code that all ranks run does not read the run directory, clocks or the environment.

Ranks that branch on what they read themselves take different branches when one of them is late, and wait for each other
in different collectives. So what they must agree on is decided by rank 0 and broadcast (`Ranks.from_first`), or derived
from the plan. The check follows the calls of a rank from `run_rank`, by name; it does not follow what only rank 0 runs:
the argument of `from_first`, branches on `is_first`, and what only these call.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.test_architecture import ROOT, dotted, parsed

SCANNED = (
    *("training/*.py", "training/engine/*.py", "training/checkpoint/*.py", "training/optim/*.py"),
    *("training/distributed/ranks.py", "training/distributed/interruption.py", "data/index/loader.py"),
    *(f"evaluation/{name}.py" for name in ("score", "job", "work_queue", "held_out", "log_probabilities", "classes")),
    *(f"evaluation/{name}.py" for name in ("pairs", "kto", "task_answers", "answers", "few_shot")),
)
NOT_SCANNED = "training/journal.py"
"""Writes on rank 0 only, and returns nothing."""
ROOTS = [("training/run_rank.py", "run_rank"), ("training/distributed/ranks.py", "join_ranks")]
CLOCKS = {f"time.{name}" for name in ("time", "time_ns", "monotonic", "perf_counter", "process_time")} | {
    "datetime.now"
}
ENVIRONMENT = {
    "os.environ",
    "os.getenv",
    "os.getppid",
    "socket.gethostname",
    "shutil.disk_usage",
    "os.sched_getaffinity",
}
FILES = {
    *("is_dir", "is_file", "exists", "iterdir", "glob", "rglob", "stat", "read_text", "read_bytes", "scandir"),
    *("listdir", "access", "load_state", "newest_valid", "committed", "read_events", "read_status", "verify"),
    *("read_ledger", "newest_attempt", "safe_open"),
}
"""Methods and functions that read files or directories: of pathlib and os, and those of rundir/ and checkpoints.py."""

_DURATION = "a duration in an event; no branch"
_QUEUE = "who scores a batch is not agreed on: batches are independent, and no rank meets another until all are done"
ALLOWED = {
    "evaluation/work_queue.py _record_claim: open": _QUEUE,
    "evaluation/work_queue.py _record_claim: socket.gethostname": _QUEUE,
    "evaluation/work_queue.py _record_claim: time.time": _QUEUE,
    "evaluation/work_queue.py is_done: is_file": _QUEUE,
    "evaluation/work_queue.py records_of: open": _QUEUE,
    "training/checkpoint/tensor_file.py __init__: safe_open": "the checkpoint that rank 0 has named; no branch",
    "training/distributed/interruption.py check: time.monotonic": "the grace period of a worker without launcher",
    "training/distributed/ranks.py own_rank: os.environ": "which rank this is",
    "training/engine/deepspeed_start.py start_deepspeed: os.environ": "variables are set, not read",
    "training/evaluation.py evaluate: time.perf_counter": _DURATION,
    "training/loop.py train: time.perf_counter": _DURATION,
    "training/saving.py _save: time.perf_counter": _DURATION,
}
"""`file function: read` -> why it is not a decision."""


@dataclass
class Code:
    """Functions by (file, name) and methods by name; a class stands for its constructor. Methods of several classes may
    have the same name: all of them are followed."""

    functions: dict[tuple[str, str], ast.FunctionDef] = field(default_factory=dict)
    methods: dict[str, list[tuple[str, ast.FunctionDef]]] = field(default_factory=lambda: defaultdict(list))
    imported: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    properties: set[str] = field(default_factory=set)

    def add(self, path: str, tree: ast.Module) -> None:
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                self.functions[path, node.name] = node
            if isinstance(node, ast.ClassDef):
                self._add_class(path, node)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tunesmith."):
                file = (node.module or "").removeprefix("tunesmith.").replace(".", "/") + ".py"
                self.imported |= {(path, alias.asname or alias.name): (file, alias.name) for alias in node.names}
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                self.imported |= {(path, alias.asname or alias.name): ("", alias.name) for alias in node.names}

    def _add_class(self, path: str, definition: ast.ClassDef) -> None:
        for node in definition.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                self.functions[path, definition.name] = node
            elif isinstance(node, ast.FunctionDef):
                self.methods[node.name].append((path, node))
                if any(dotted(mark).endswith("property") for mark in node.decorator_list):
                    self.properties.add(node.name)

    def reads(self, roots: list[tuple[str, str]]) -> Iterator[str]:
        """`file function: read` of every function that all ranks reach from the roots, (file, name)."""
        waiting = [(path, self.functions[path, name]) for path, name in roots]
        reached: set[int] = set()
        while waiting:
            path, function = waiting.pop()
            if id(function) in reached:
                continue
            reached.add(id(function))
            for node in of_all_ranks(function.body):
                if (read := read_of(node)) is not None:
                    yield f"{path} {function.name}: {read}"
                waiting += self._called(path, node)

    def _called(self, path: str, node: ast.AST) -> list[tuple[str, ast.FunctionDef]]:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            place = self.imported.get((path, node.func.id), (path, node.func.id))
            return [(place[0], self.functions[place])] if place in self.functions else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            if (path, owner) in self.imported:  # a class method of a known class, or a function of a module
                place = self.imported[path, owner]
                return [method for method in self.methods[node.func.attr] if method[0] == place[0]]
            return self.methods[node.func.attr]
        return self.methods[node.attr] if isinstance(node, ast.Attribute) and node.attr in self.properties else []


def of_all_ranks(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Every node of a function's body that all ranks run."""
    waiting: list[ast.AST] = []
    for statement in body:
        waiting.append(statement)
        if isinstance(statement, ast.If) and excludes_others(statement):
            break  # the rest of the body is rank 0's
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, (ast.If, ast.IfExp)) and is_first(node.test):
            rest = node.orelse if isinstance(node.orelse, list) else [node.orelse]
            waiting += rest
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("from_first"):
            waiting.append(node.func)
        elif not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            waiting += ast.iter_child_nodes(node)


def is_first(test: ast.expr) -> bool:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return any(is_first(value) for value in test.values)
    return isinstance(test, ast.Attribute) and test.attr == "is_first"


def excludes_others(statement: ast.If) -> bool:
    negated = isinstance(statement.test, ast.UnaryOp) and isinstance(statement.test.op, ast.Not)
    return negated and is_first(statement.test.operand) and isinstance(statement.body[-1], (ast.Return, ast.Raise))


def read_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute) and dotted(node) in ENVIRONMENT:
        return dotted(node)
    if not isinstance(node, ast.Call):
        return None
    name = dotted(node.func) or (node.func.attr if isinstance(node.func, ast.Attribute) else "")
    if name in CLOCKS | ENVIRONMENT:
        return name
    last = name.rpartition(".")[2]
    return last if last in FILES or name == "open" else None


def test_no_rank_decides_alone():
    code = Code()
    for path in sorted(path for pattern in SCANNED for path in ROOT.glob(pattern)):
        if (name := path.relative_to(ROOT).as_posix()) != NOT_SCANNED:
            code.add(name, parsed(path))
    assert set(code.reads(ROOTS)) == set(ALLOWED)


def reads_in(source: str) -> list[str]:
    code = Code()
    code.add("a.py", ast.parse(source))
    return [read.rpartition(": ")[2] for read in code.reads([("a.py", "run")])]


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("def run(c):\n  if c.run.events.is_file(): c.ranks.barrier()", "is_file"),
        ("def run(c):\n  decide(c)\ndef decide(c):\n  return read_events(c.run.events)", "read_events"),
        (
            "def run(c):\n  Saving(c).save()\nclass Saving:\n  def save(self):\n    return self.due\n"
            "  @property\n  def due(self):\n    return time.monotonic() > 3",
            "time.monotonic",
        ),
        ("def run(c):\n  return c.kind if os.environ.get('X') else None", "os.environ"),
        ("def run(c):\n  if c.ranks.is_first:\n    pass\n  else:\n    os.path.exists(c.run.plan)", "exists"),
        ("def run(c):\n  if not c.ranks.is_first:\n    c.run.plan.stat()\n    return", "stat"),
        ("class Saving:\n  def __init__(self, c):\n    open(c.run.plan)\ndef run(c):\n  Saving(c)", "open"),
    ],
)
def test_a_planted_read_is_found(source, read):
    assert reads_in(source) == [read]


@pytest.mark.parametrize(
    "source",
    [
        "def run(c):\n  return c.ranks.from_first(lambda: c.run.events.is_file())",
        "def run(c):\n  return c.ranks.from_first(partial(decide, c))\ndef decide(c):\n  return c.run.plan.is_file()",
        "def run(c):\n  if c.ranks.is_first:\n    c.run.plan.read_text()\n  c.ranks.barrier()",
        "def run(c):\n  c.ranks.barrier()\n  if not c.ranks.is_first:\n    return 0\n  return c.run.plan.read_text()",
        "def run(c):\n  if c.write and c.ranks.is_first:\n    c.run.plan.stat()",
        "def run(c):\n  pass\ndef other(c):\n  return time.time()",
    ],
)
def test_what_only_rank_0_reads_passes(source):
    assert reads_in(source) == []
