"""Last sections of the report: proofs, the recipe as written, and versions."""

import platform
from importlib import metadata

from tunesmith import __version__
from tunesmith.report.markup import Content, Html, details, section, tag
from tunesmith.report.proofs.proof import Proof
from tunesmith.report.record import Record
from tunesmith.report.wording import count, plural

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "pydantic")
_SIGNS = {
    True: ("✓", "passed", "good-text"),
    False: ("✗", "failed", "bad-text"),
    None: ("–", "open", "note"),
}


def proofs(results: list[Proof]) -> Html:
    failed = [proof for proof in results if proof.passed is False]
    lead: list[Content] = ["Verified from the run's files when this report was written; run "]
    lead += [tag("code", "tunesmith prove"), " to verify them again."]
    if failed:
        lead.insert(0, f"{plural(len(failed), 'proof')} failed. ")
    items = []
    for proof in results:
        sign, label, look = _SIGNS[proof.passed]
        mark = tag("span", sign, class_=f"sign {look}", role="img", aria_label=label)
        items.append(tag("li", mark, tag("b", proof.name), tag("span", proof.evidence, class_="evidence")))
    return section("proofs", "Proofs", tag("ol", items, class_="proofs"), lead=lead)


def recipe_and_versions(record: Record) -> Html:
    text = record.recipe_text
    shown = tag("pre", tag("code", text)) if text is not None else tag("p", "recipe.yaml is missing.", class_="none")
    plan = record.plan and details("Full plan (plan.json)", tag("pre", record.plan.model_dump_json(indent=2)))
    facts = [(tag("dt", name), tag("dd", value)) for name, value in _facts(record)]
    versions = (tag("h3", "Model, data and software versions"), tag("dl", facts, class_="facts"))
    return section("recipe", "Recipe and versions", shown, plan, versions)


def _facts(record: Record) -> list[tuple[str, str]]:
    plan, facts = record.plan, []
    if plan is not None:
        params = f"{count(plan.model.num_params)} parameters, {count(plan.model.num_trained_params)} trainable"
        facts = [
            ("Run directory", str(record.run.root)),
            ("Model", f"{plan.model.source} ({plan.model.model_type}, {params})"),
            ("Model fingerprint", plan.model.fingerprint),
            ("Data fingerprint", plan.data.fingerprint),
            ("Planned with", f"tunesmith {plan.tunesmith_version}"),
        ]
    export = record.exports[-1] if record.exports else None
    if export is not None:
        facts.append(("Export", f"{record.export_path} ({export.form})"))
    facts.append(
        ("Report written with", f"tunesmith {__version__}, Python {platform.python_version()}, {platform.platform()}")
    )
    facts.append(("Installed packages", ", ".join(_versions())))
    return facts


def _versions() -> list[str]:
    """Versions from the package metadata, without importing the packages."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return versions
