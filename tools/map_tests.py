"""Which test of the present tree is which test of an earlier commit.

    python tools/map_tests.py BASE [REVISION] [--below 0.5]

Every test function of BASE is paired with the function of REVISION (default HEAD) whose body is most alike: twice the
token triples that both have, over the triples of both (Dice's coefficient), plus a little for equal words in the name.
Prints one line per test: likeness, assertions before and after, old name, new name. --below: only pairs that are less
alike, to be read by a person. Shows that a suite that was renamed and moved has lost no test.
"""

import argparse
import ast
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

TOKEN = re.compile(r"[A-Za-z_]\w*|\d+(?:\.\d+)?|[^\s\w]")
COMMON = 60
"""Triples in more tests than these do not select candidates: they would select all."""
CANDIDATES = 12


class Test(NamedTuple):
    """triples: of tokens in the body. num_assertions: statements and calls that can fail."""

    triples: Counter[tuple[str, str, str]]
    num_assertions: int
    words: frozenset[str]


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def tests_of(revision: str) -> dict[str, Test]:
    """The test functions of a revision by `file::name`."""
    paths = git("ls-tree", "-r", "--name-only", revision, "tests").splitlines()
    return {
        f"{path}::{name}": test
        for path in paths
        if path.endswith(".py")
        for name, test in _tests_in(git("show", f"{revision}:{path}"))
    }


def _tests_in(source: str) -> Iterator[tuple[str, Test]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            text = ast.get_source_segment(source, node) or ""
            tokens = TOKEN.findall(text[text.find(":") + 1 :])
            statements = sum(isinstance(inner, ast.Assert) for inner in ast.walk(node))
            calls = sum(text.count(call) for call in ("pytest.raises", "assert_close", "wait_for("))
            triples = Counter(zip(tokens, tokens[1:], tokens[2:], strict=False))
            yield node.name, Test(triples, statements + calls, frozenset(node.name.split("_")))


def likeness(old: Test, new: Test) -> float:
    """0 to 1 by the bodies, and up to 0.05 more by the names."""
    both = sum((old.triples & new.triples).values())
    bodies = 2 * both / max(1, sum(old.triples.values()) + sum(new.triples.values()))
    return bodies + 0.05 * len(old.words & new.words) / len(old.words | new.words)


def pairs(old: dict[str, Test], new: dict[str, Test]) -> Iterator[tuple[str, str, float]]:
    """Each old test with the new one that is most alike, and their likeness."""
    holders: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name, test in new.items():
        for triple in test.triples:
            holders[triple].append(name)
    for name, test in old.items():
        shared = Counter(h for triple in test.triples if len(holders[triple]) < COMMON for h in holders[triple])
        candidates = [candidate for candidate, _ in shared.most_common(CANDIDATES)] + [name] * (name in new)
        if candidates:
            best = max(candidates, key=lambda candidate: likeness(test, new[candidate]))
            yield name, best, likeness(test, new[best])
        else:
            yield name, "-", 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("revision", nargs="?", default="HEAD")
    parser.add_argument("--below", type=float, default=2.0)
    arguments = parser.parse_args()
    old, new = tests_of(arguments.base), tests_of(arguments.revision)
    for before, after, alike in sorted(pairs(old, new), key=lambda pair: pair[2]):
        if alike < arguments.below:
            num_after = new[after].num_assertions if after in new else 0
            print(f"{alike:.2f}  {old[before].num_assertions} -> {num_after}  {before}  {after}")


if __name__ == "__main__":
    main()
