"""The model proof: the model compared with the forward of transformers' own class, when planned and when loaded."""

from typing import Any

from tunesmith.report.markup import Content, Html, table, tag
from tunesmith.report.record import Record
from tunesmith.report.wording import NONE, finite


def model_proof(record: Record) -> Html | None:
    """The comparisons of the plan and of the last attempt; None without any."""
    proof = record.plan.model.proof if record.plan is not None else None
    planned = [] if proof is None else [c.model_dump() for c in proof.comparisons]
    loaded = (record.model_proof and record.model_proof.items) or []
    body = [_row("planned", item) for item in planned] + [_row("loaded", item) for item in loaded]
    if not body:
        return None
    cut = f"Planned on a part of the model: {', '.join(proof.cut)}." if proof is not None and proof.cut else ""
    head = ["When", "Comparison", "Relative difference", "Limit", "Result"]
    return tag("div", tag("h3", "Model proof"), table("Model proof", head, body, numeric=(2, 3)), tag("p", cut))


def _row(when: str, item: dict[str, Any]) -> list[Content]:
    difference, limit = finite(item.get("difference")), finite(item.get("limit"))
    shown = NONE if difference is None else f"{difference:.1e}"
    result = "equal" if item.get("holds") is True else tag("b", str(item.get("reason") or "differs"))
    return [when, str(item.get("name")), shown, NONE if limit is None else f"{limit:.1e}", result]
