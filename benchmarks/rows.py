"""Chat rows of unequal length from the docstrings of Python's standard library, available on every machine."""

import ast
import json
import random
import sysconfig
from pathlib import Path

from tunesmith.configs.recipe import Recipe

SHORTEST, LONGEST = 200, 2000
"""Length limits of a docstring in characters: about 50 to 480 tokens."""


def write_rows(path: Path, count: int) -> int:
    """Write up to `count` chats as JSON Lines and return their number. Deterministic for a given Python version."""
    rows = []
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8", errors="replace"))):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            text = ast.get_docstring(node) or ""
            if SHORTEST <= len(text) <= LONGEST:
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                question = f"What does the {kind} {node.name} of Python's module {source.stem} do?"
                messages = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
                rows.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(rows[:count]) + "\n", encoding="utf-8")
    return len(rows[:count])


def write_many_rows(path: Path, count: int, paragraphs_each: tuple[int, int] = (1, 6)) -> None:
    """Write `count` distinct chats as JSON Lines, each with random paragraphs of the standard library's docstrings.

    paragraphs_each: range of their number; one to six give 60 to 700 tokens, 200 on average. Deterministic for a given
    Python version.
    """
    paragraphs = []
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                text = ast.get_docstring(node) or ""
                paragraphs += [part for part in text.split("\n\n") if 60 <= len(part) <= 800]
    draw = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            answer = "\n\n".join(draw.choices(paragraphs, k=draw.randint(*paragraphs_each)))
            question = f"Tell me about {' and '.join(draw.choices(answer.split(), k=4))}, number {number}."
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")


def recipe_of(file: Path, model: Path) -> Recipe:
    """Return a recipe for LoRA on chats of at most 512 tokens, without validation rows."""
    data = {"train": [str(file)], "validation": 0.0, "max_seq_len": 512, "too_long": "truncate"}
    return Recipe.model_validate(
        {"name": "benchmark", "model": {"base": str(model)}, "task": "chat", "method": {"kind": "lora"}, "data": data}
    )
