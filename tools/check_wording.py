"""Finds words in the tree that are not the field's: `python tools/check_wording.py [PATH...]`.

Tunesmith's code, output and docs use the standard terms of PyTorch, Hugging Face, Ray, Slurm and the OpenAI API, in
plain technical English. Each entry is a pattern that earlier text used and the term to use instead. Names count like
prose: `rows_told` contains the word `told`. What is on disk or in an API keeps its name and is listed under ALLOWED,
with the reason.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

TERMS: dict[str, str] = {
    r"foreseen": "token accuracy",
    r"what became of|became of|fates?": "row outcomes: kept, truncated, dropped, duplicate, rejected",
    r"rows? (?:(?:is|are|was|were) )?refused|refused rows?": "rows rejected",
    r"(?:goes|go|gone|went|going) on|taken? up again": "is resumed, continues",
    r"standing|how (?:\w+ ){1,3}stands?": "status",
    r"talk to (?:it|them)": "chat with it",
    r"(?:its|their|last) words": "its output, its log; fatal error",
    r"told|said|mourn\w*": "reported, logged, printed; as a name: the thing itself",
    r"anew|from nothing": "again, from scratch",
    r"lives|lived|died|dies|dead": "attempts; is running; exited, failed, unreachable",
    r"hindmost": "stragglers",
    r"by heart": "memorized; train/validation leakage",
    r"worth it": "verdict against the baseline",
    r"(?:its|their) like": "equal to the reference",
    r"middle row": "median row",
    r"much like": "near-duplicate, similar to",
    r"beside": "in the background; next to; together with; compared with",
    r"laid end to end": "concatenated",
    r"(?:put|stands?) in (?:its|their) place": "replaced",
    r"of its kind": "limit of N, minimum N",
    r"divided weights|weights? (?:is |are )?divided|divid(?:ed|ing) (?:model|weights|optimizer|parameters?)": "sharded",
    r"made by|made of": "created by, consists of",
    r"hold a server against|held? against": "test for conformance with",
    r"train on from": "continue training from",
    r"machine that is away|is away": "unreachable",
    r"for good": "permanently",
    r"its \d(?:st|nd|rd|th) message": "messages[N]",
}
NAMES = ("asked", "wanted", "found", "told", "said", "gained", "theirs", "likes")
"""Participles that name no value: `found` of a search for a checkpoint is `checkpoint`."""

SUFFIXES = {".py", ".md", ".html", ".js", ".css", ".yaml", ".yml", ".sh", ".sbatch", ".toml", ""}
IGNORED = (
    "tests/fixtures/",
    "tests/rundir/recorded/",
    "tests/slurm/recorded/",
    "tests/slurm/version_0_1/",
    "typings/",
    "LICENSE",
    "tests/test_wording.py",
    "tools/check_wording.py",
)


class Allowed(NamedTuple):
    """Where a listed word stays, and why: a path's beginning and a pattern that the line contains."""

    path: str
    pattern: str
    reason: str


_FATE = "`fate` and `fates` are keys of receipts, summary.json, rows.npy and the API"
_LIVES = "`max_lives` is a key of a Slurm site, `lives.jsonl` a file of the run directory"
ALLOWED: tuple[Allowed, ...] = (
    *(Allowed(path, r"\bfates?\b", _FATE) for path in ("data/", "serving/", "tests/")),
    *(Allowed(path, r"[\"`]fates?[\"`]", _FATE) for path in ("docs/data.md", "launcher/", "report/")),
    Allowed("", r"max_lives|MAX_LIVES|lives\.jsonl", _LIVES),
    Allowed("benchmarks/checkpoint.py", "beside", "a key of results that are committed"),
    Allowed("tools/make_clinical_notes.py", r"Lives (?:alone|with)", "text of synthetic rows"),
    Allowed("demo/", r"\bsaid\b", "the verb by which the demo finds the end of a headline: `NAME inc said`"),
    Allowed("tests/demo/", r"\bsaid\b", "stories as the demo reads them"),
)


def _pattern() -> re.Pattern[str]:
    # A word ends at an underscore, too: names are read as prose.
    words = "|".join(f"(?P<t{number}>{pattern})" for number, pattern in enumerate(TERMS))
    return re.compile(rf"(?<![A-Za-z]){'(?:' + words + ')'}(?![A-Za-z])", re.IGNORECASE)


_WORDS = _pattern()
# What a value is called: assigned, a parameter, a loop's variable or an attribute.
_VALUES = re.compile(
    rf"(?:^|[(,\s.])(?P<name>{'|'.join(NAMES)})"
    r"(?:\s*(?::[^=]*)?=(?!=)|\s*:\s*[A-Z\w\[\]\"' |.]+[,)=]|\s+in\s|\s*[,)]\s*(?=.*=))"
)


def findings(path: str, text: str) -> list[str]:
    """`FILE:LINE: 'words' (use: ...)` for each listed word in a file's text that no entry of ALLOWED covers."""
    allowed = [re.compile(entry.pattern) for entry in ALLOWED if path.startswith(entry.path)]
    result = []
    for number, line in enumerate(text.splitlines(), 1):
        if any(pattern.search(line) for pattern in allowed):
            continue
        for match in _WORDS.finditer(line):
            term = list(TERMS.values())[int((match.lastgroup or "t0")[1:])]
            result.append(f"{path}:{number}: '{match.group()}' (use: {term})")
        if path.endswith(".py"):
            names = {match.group("name") for match in _VALUES.finditer(line)}
            result += [f"{path}:{number}: a value is called '{name}' (name the thing itself)" for name in sorted(names)]
    return result


def main(paths: list[str]) -> int:
    """Print the findings of the tracked files under the paths (all without); 1 where there are any."""
    listed = subprocess.run(
        ["git", "ls-files", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    lines: list[str] = []
    for path in listed.splitlines():
        if Path(path).suffix in SUFFIXES and not path.startswith(IGNORED) and (ROOT / path).is_file():
            lines += findings(path, (ROOT / path).read_text(encoding="utf-8"))
    print("\n".join(lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
