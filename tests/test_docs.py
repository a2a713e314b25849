"""What the pages say is so: the reference matches the schema, links lead somewhere, commands and recipes exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tunesmith.configs.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
COMMAND = re.compile(r"\btunesmith ([a-z]+(?: (?:check|show)\b)?)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the usual Markdown sites make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.fixture(scope="module")
def commands() -> set[str]:
    """The commands that the command line itself lists, `data check` and `data show` among them."""
    listed = set()
    for group in ([], ["data"]):
        call = [sys.executable, "-m", "tunesmith.cli.main", *group, "--help"]
        result = subprocess.run(
            call, capture_output=True, text=True, check=True, env={"COLUMNS": "200", "NO_COLOR": "1"}
        )
        listed |= {" ".join([*group, name]) for name in re.findall(r"^\W*([a-z]+) {2,}\S", result.stdout, re.MULTILINE)}
    return listed


def test_the_recipe_reference_is_up_to_date():
    printed = subprocess.run(
        [sys.executable, ROOT / "tools" / "write_recipe_reference.py", "--print"],
        capture_output=True,
        text=True,
        check=True,
    )
    written = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert written == printed.stdout, "the schema changed: run `make docs`"
    for name in Recipe.model_fields:
        assert f"| `{name}` |" in written


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(place), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page, commands):
    assert {"train", "plan", "data check"} <= commands
    for fence in (*re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")), *shell_lines(page)):
        for name in COMMAND.findall(fence):
            assert name in commands, f"{page.name} speaks of `tunesmith {name}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_whole_recipes_on_the_pages_are_valid(page):
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "yaml" and "method:" in text and "model:" in text:
            Recipe.model_validate(yaml.safe_load(text))


def test_the_readme_holds_a_whole_recipe_of_ten_lines():
    fences = FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    recipes = [text for language, text in fences if language == "yaml"]
    assert any(len(text.strip().splitlines()) <= 10 and "method:" in text for text in recipes)


def test_make_targets_in_pages_and_workflows_exist():
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    targets = set(re.findall(r"^ *make ([a-z-]+) ", listed.stdout, re.MULTILINE))
    workflows = sorted((ROOT / ".github").rglob("*.*"))
    named = {
        (page.name, target)
        for page in [*PAGES, *workflows]
        for target in re.findall(
            r"(?:`|run: |PATH |^ {4})make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert ("checks.yml", "test-quick") in named
    assert {(page, target) for page, target in named if target not in targets} == set()


def shell_lines(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [line for language, body in FENCE.findall(text) if language in {"", "sh"} for line in body.splitlines()]


def test_contributing_names_files_that_are_there():
    """Its tables answer where a concept is and where something is added: every path in them leads somewhere."""
    tables = [line for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines() if "|" in line[:1]]
    named = {path for line in tables for path in re.findall(r"`([a-z_]+/[\w./-]+)`", line)}
    assert len(named) > 60
    assert not [path for path in named if not (ROOT / path).exists()]
