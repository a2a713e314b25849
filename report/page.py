"""HTML report of a run in a single self-contained file, for running, failed and finished runs."""

import base64
import hashlib
import time
from pathlib import Path

from tunesmith.report.appendix import proofs, recipe_and_versions
from tunesmith.report.baselines import baseline_section, compare_baselines
from tunesmith.report.comparison import compare
from tunesmith.report.dynamics import curves
from tunesmith.report.history import history
from tunesmith.report.markup import Html, tag
from tunesmith.report.mixture import datasets
from tunesmith.report.outcome import verdict_of
from tunesmith.report.planned import choices, plan_against_measured
from tunesmith.report.prove import prove_record
from tunesmith.report.receipts import read_receipts
from tunesmith.report.record import read_record
from tunesmith.report.rows import rows
from tunesmith.report.summary import answers, header, result
from tunesmith.report.wording import moment
from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.paths import RunDir

STYLE = Path(__file__).parent / "style.css"
# The only script: expand all details before printing.
SCRIPT = "addEventListener('beforeprint',()=>document.querySelectorAll('details').forEach(d=>{d.open=true}))"
TITLES = {
    "result": "Evaluation",
    "baselines": "Baselines",
    "datasets": "Data sets",
    "answers": "Sample outputs",
    "training": "Training curves",
    "proofs": "Proofs",
    "rows": "Row outcomes",
    "plan": "Planned and measured",
    "choices": "Plan decisions",
    "history": "Run history",
    "recipe": "Recipe and versions",
}


def write_report(run: RunDir) -> Path:
    """Write report.html from the run directory, atomically, and return its path.

    Reads every byte of the checkpoints and the export to verify them. Raises OSError if the file cannot be written.
    """
    write_text(run.report, render(run))
    return run.report


def render(run: RunDir) -> str:
    record, receipts = read_record(run), read_receipts(run)
    comparison = compare(record)
    results = prove_record(record, receipts)
    verdict = verdict_of(record, comparison)
    sections = {
        "result": result(record, receipts, comparison),
        "baselines": baseline_section(record, compare_baselines(record)),
        "datasets": datasets(record),
        "answers": answers(record),
        "training": curves(record),
        "proofs": proofs(results),
        "rows": rows(receipts),
        "plan": plan_against_measured(record),
        "choices": choices(record),
        "history": history(record),
        "recipe": recipe_and_versions(record),
    }
    links = [tag("li", tag("a", TITLES[name], href=f"#{name}")) for name, content in sections.items() if content]
    body = tag(
        "body",
        tag("a", "Skip to content", href="#content", class_="skip"),
        tag(
            "div",
            header(record, verdict, results, comparison),
            tag("nav", tag("ul", links), aria_label="Sections"),
            tag("main", sections.values(), id="content"),
            tag(
                "footer", f"Written {moment(time.time())} from {run.root}. This file works offline and without scripts."
            ),
            class_="page",
        ),
        tag("script", Html(SCRIPT)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head(record.name, verdict.word), body, lang='en')}\n"


def head(name: str, word: str) -> Html:
    """The head, with a policy that forbids all loading, whatever text the run contains."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    nothing = "default-src 'none'; base-uri 'none'; form-action 'none'"
    policy = f"{nothing}; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", f"{name} · {word} · Tunesmith"),
        tag("style", Html(STYLE.read_text(encoding="utf-8"))),
    )
