"""The report is self-contained, well-formed, accessible and escaped, for a run in any state."""

import base64
import hashlib
import json
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tunesmith.configs.tasks import TASKS
from tunesmith.report.measures import DEFINITIONS
from tunesmith.report.page import STYLE, TITLES, write_report
from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.events import EVENT_TYPES
from tunesmith.rundir.paths import RunDir

HOSTILE = (
    "</script></style></title><script>alert(1)</script><img src=x onerror=alert(2)>\"' onclick=x \x00\x1b[0m\u202e]]>"
)


def page(run: RunDir) -> ElementTree.Element:
    """The report as a tree. It is well-formed XML, which is stricter than HTML."""
    text = write_report(run).read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>\n<html lang=")
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))


def text_of(element: ElementTree.Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def section_of(root: ElementTree.Element, name: str) -> ElementTree.Element:
    return next(item for item in root.iter("section") if item.attrib["id"] == name)


def failing(example):
    example.start().evaluate("before").train(25)
    for _ in range(4):
        example.train_step(loss="nan", grad_norm="inf", skipped=True)
    return example.end("failed", 1, what="loss or gradient is not finite", where="steps 26 to 29", remedy="lower it")


STATES = {
    "prepared": lambda example: example,
    "loading": lambda example: example.emit("phase", phase="loading"),
    "first step": lambda example: example.start().train(1),
    "running": lambda example: example.start().evaluate("before").answer("before").train(33),
    "preempted": lambda example: example.start().evaluate("before").train(22).end("preempted", 75),
    "failed": failing,
    "early": lambda example: (
        example.start().evaluate("before").train(40).evaluate("after").export().end("early_stopped", 0)
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_run_in_any_state_has_a_report(example, state):
    STATES[state](example)
    root = page(example.run)
    assert root.findtext(".//h1") == "support-bot"
    assert {item.attrib["id"] for item in root.iter("section")} >= {"result", "training", "proofs", "rows", "history"}


def test_empty_directory_has_a_report(tmp_path):
    assert "plan.json is missing" in text_of(page(RunDir(tmp_path)))


@pytest.mark.parametrize("name", ["plan", "events", "status", "recipe", "rejects", "evaluation", "summary", "ledger"])
def test_damaged_file_empties_only_its_part_of_the_report(finished, name):
    run = finished.run
    paths = {"evaluation": run.evaluation(0), "summary": run.receipts / "summary.json", "ledger": run.ledger_of(0)}
    path = paths.get(name) or getattr(run, name)
    unexpected = b'{"kind": "step"}\n{"kind": "start", "step": "x"}\n'
    for content in (b"", b"{}", b"[1]\n", b"\xff\xfe\x00{", unexpected):
        path.write_bytes(content)
        assert page(run).findtext(".//h1") == "support-bot"


STRANGE = [None, "text", -1, [], {}, True, 1e300, "nan", [None, {"row": 1}]]


@pytest.mark.parametrize("kind", [kind for kind in EVENT_TYPES if kind != "phase"])
def test_events_with_unexpected_values_do_not_break_the_report(finished, kind):
    """A later version or a damaged disk may have written them."""
    path = finished.run.events
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    last = next((event for event in reversed(events) if event["kind"] == kind), {"kind": kind, "what": "", "where": ""})
    for value in STRANGE:
        strange = [{**last, key: value} for key in last if key != "kind"]
        lines = [json.dumps(event) + "\n" for event in events + strange]
        path.write_text("".join(lines), encoding="utf-8")
        assert page(finished.run).findtext(".//h1") == "support-bot"


def test_header_shows_outcome_cause_and_remedy(example):
    failing(example)
    header = page(example.run).find(".//header")
    assert header is not None
    text = text_of(header)
    assert "Failed" in text
    assert "Cause" in text
    for expected in ("loss or gradient is not finite", "steps 26 to 29", "lower it", "exit code 1"):
        assert expected in text


def test_evaluation_shows_before_after_and_the_interval_of_the_difference(finished):
    result = section_of(page(finished.run), "result")
    rows = [[text_of(cell) for cell in row] for row in next(result.iter("tbody"))]
    assert rows[0] == ["Loss (nats per token)", "2.8381", "1.7755", "−1.0626", "−1.2166 to −0.9087"]
    assert rows[1][0] == "Perplexity"
    assert rows[1][3:] == ["× 0.346", "× 0.296 to × 0.403"]
    assert rows[2][0] == "Token accuracy"
    assert "The loss fell on 47 rows and rose on 1" in text_of(result)
    assert "support.jsonl:" in text_of(result), "rows with the largest changes are named by file and line"


def test_every_metric_of_the_evaluation_is_defined(finished):
    result = section_of(page(finished.run), "result")
    names = [text_of(row[0]) for row in next(result.iter("tbody"))]
    tooltips = {text_of(item): item.attrib["title"] for item in result.iter("abbr")}
    definitions = {text_of(item) for item in result.iter("dt")}
    assert set(names) <= tooltips.keys()
    assert set(names) <= definitions, "tooltips need a pointer, so the definitions are listed as well"


def test_every_metric_of_every_task_has_a_definition():
    names = {metric.name for task in TASKS.values() for metric in task.metrics}
    assert names <= DEFINITIONS.keys()


def test_sample_outputs_are_shown_side_by_side(finished):
    text = text_of(section_of(page(finished.run), "answers"))
    assert "How do I change my password?" in text
    assert "1. Open the settings" in text
    assert "choose Security and then Change password." in text
    assert "length limit" in text
    assert "stop token" in text


def test_every_chart_exists_and_has_a_description(finished):
    root = page(finished.run)
    figures = [text_of(caption) for caption in root.iter("figcaption")]
    assert [name.split()[0] for name in figures] == ["Loss", "Token", "Learning", "Gradient", "Throughput", "Peak"]
    labels = [svg.attrib["aria-label"] for svg in root.iter("svg") if svg.attrib.get("role") == "img"]
    assert len(labels) == 6
    assert "validation from 2.8381 at step 0 to 1.7755 at step 76" in labels[0]


def test_row_outcomes_add_up_to_the_total(finished):
    rows = section_of(page(finished.run), "rows")
    lines = [[text_of(cell) for cell in line][:4] for line in next(rows.iter("tbody"))]
    numbers = [[int(cell) for cell in line[1:]] for line in lines]
    assert [sum(column) for column in zip(*numbers[:-1], strict=True)] == numbers[-1]
    assert numbers[-1][2] == 480
    assert all(train + validation == both for train, validation, both in numbers)


def test_what_the_chat_template_omits_is_a_warning(finished):
    path = finished.run.receipts / "summary.json"
    summary = json.loads(path.read_text())
    assert "Warning" not in text_of(section_of(page(finished.run), "rows"))
    path.write_text(json.dumps({**summary, "omitted": {"system messages": 1, "thinking": 1200}}))
    text = text_of(section_of(page(finished.run), "rows"))
    assert "Warning: the chat template omits system messages in 1 row, thinking in 1,200 rows." in text


def test_rejected_rows_are_shown_with_file_line_reason_and_remedy(finished):
    text = text_of(section_of(page(finished.run), "rows"))
    for expected in (
        "support.jsonl:18",
        "messages[1].role is 'asistant'",
        "write one of: system, user",
        '{"messages": [{"role"',
    ):
        assert expected in text


def test_planned_and_measured_values_are_compared(finished):
    text = text_of(section_of(page(finished.run), "plan"))
    assert "Optimizer steps 76 76 none" in text
    assert "Peak memory per rank 3.0 GiB 2.6 GiB −13.3%" in text
    assert "repeated steps" in text


def test_plan_decisions_history_recipe_and_versions_are_shown(finished):
    root = page(finished.run)
    assert "this CPU has no bf16 matrix units" in text_of(section_of(root, "choices"))
    text = text_of(section_of(root, "history"))
    assert "step-00000060.corrupt" in text
    assert "model.safetensors does not match its hash" in text
    assert "2 validation rows are near-duplicates" in text
    assert text.count("killed or crashed") == 2
    recipe = section_of(root, "recipe")
    assert root.findtext(".//pre/code") == finished.run.recipe.read_text()
    assert "tunesmith 0.1.0" in text_of(recipe)  # the version that planned the run
    assert "numpy" in text_of(recipe)


def test_hostile_text_is_escaped_everywhere(example):
    """Covers every source of external text: users, models, files and hosts."""
    example.run.recipe.write_text(HOSTILE.replace("\x00", ""), encoding="utf-8")
    plan = json.loads(example.run.plan.read_text())
    plan["model"]["source"] = plan["model"]["model_type"] = plan["data"]["fingerprint"] = HOSTILE
    plan["choices"].append({"key": HOSTILE, "value": HOSTILE, "reason": HOSTILE, "num_bytes": None})
    example.run.plan.write_text(json.dumps(plan))
    reject = {"row": 17, "source": HOSTILE, "line": HOSTILE, "reason": HOSTILE, "remedy": HOSTILE, "text": HOSTILE}
    example.run.rejects.write_text(json.dumps(reject) + "\n")
    with open(example.run.receipts / "validation.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"row": 5000, "source": HOSTILE, "line": 1, "fate": HOSTILE, "reason": HOSTILE}) + "\n")
    write_json(
        example.run.receipts / "summary.json",
        {"splits": {"train": {"length_percentiles": {"p50": HOSTILE, "max": HOSTILE}}}},
    )
    example.start().evaluate("before").answer("before").train(21)
    item = dict.fromkeys(("row", "prompt", "reference", "answer", "stopped"), HOSTILE)
    example.emit("answers", step=1, when="after", items=[item])
    example.emit("warning", message=HOSTILE, code=HOSTILE)
    example.emit("resume", step=20, path=HOSTILE, why=HOSTILE, set_aside=[{"path": HOSTILE, "why": HOSTILE}])
    example.emit("start", attempt=HOSTILE, step=20, world_size=1, pid=1, host=HOSTILE, resumed_from=HOSTILE)
    example.emit("checkpoint", step=21, path=HOSTILE, num_bytes=HOSTILE, seconds=HOSTILE, reason=HOSTILE)
    example.emit("export", path=HOSTILE, form=HOSTILE, gate={"max_logit_difference": HOSTILE})
    example.end("failed", 1, what=HOSTILE, where=HOSTILE, remedy=HOSTILE)
    root = page(example.run)
    assert len(list(root.iter("script"))) == 1
    assert not list(root.iter("img"))
    known = {
        "class",
        "id",
        "href",
        "style",
        "title",
        "lang",
        "open",
        "role",
        "tabindex",
        "scope",
        "content",
        "name",
        "charset",
    }
    for element in root.iter():
        assert not [key for key in element.attrib if key.startswith("on")]
        if element.tag not in ("svg", "path", "line", "rect", "circle", "text", "g"):
            assert all(key in known or key.startswith(("aria-", "http-")) for key in element.attrib), element.attrib
    assert text_of(root).count("<script>alert(1)</script>") >= 20, "the escaped text is readable"


def test_report_loads_no_external_resources(finished):
    text = write_report(finished.run).read_text(encoding="utf-8")
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    loading = {"link", "img", "iframe", "object", "embed", "base", "audio", "video", "use", "image"}
    assert not [item.tag for item in root.iter() if item.tag in loading]
    assert not [item.attrib for item in root.iter() if {"src", "srcset", "data", "action"} & item.attrib.keys()]
    assert all(item.attrib["href"].startswith("#") for item in root.iter("a"))
    style = STYLE.read_text(encoding="utf-8")
    assert "url(" not in style
    assert "@import" not in style


def test_policy_forbids_loading_and_allows_only_its_script(finished):
    root = page(finished.run)
    policy = next(
        m.attrib["content"] for m in root.iter("meta") if m.attrib.get("http-equiv") == "Content-Security-Policy"
    )
    script = root.findtext(".//script") or ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_report_has_landmarks_ordered_headings_and_valid_links(finished):
    root = page(finished.run)
    for landmark in ("header", "nav", "main", "footer"):
        assert len(list(root.iter(landmark))) == 1
    identifiers = [item.attrib["id"] for item in root.iter() if "id" in item.attrib]
    assert len(identifiers) == len(set(identifiers))
    links = [item.attrib["href"][1:] for item in root.iter("a")]
    assert set(links) <= set(identifiers)
    titles = [title for name, title in TITLES.items() if name != "datasets"]  # only with named data sets
    assert [text_of(item) for item in root.find(".//nav") or []] == [" ".join(titles)]
    assert len(links) == len(titles) + 1
    for item in root.iter("section"):
        assert item.attrib["aria-labelledby"] in identifiers
    levels = [int(item.tag[1]) for item in root.iter() if re.fullmatch(r"h[1-6]", str(item.tag))]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), "heading levels are not skipped"


def test_tables_have_captions_and_row_and_column_headers(finished):
    for table in page(finished.run).iter("table"):
        assert table.findtext("caption")
        assert all(cell.attrib["scope"] == "col" and text_of(cell) for cell in table.findall("thead/tr/th")[1:])
        assert all(row[0].tag == "th" and row[0].attrib["scope"] == "row" for row in table.findall("tbody/tr"))
        widths = {len(row) for row in table.iter("tr")}
        assert len(widths) == 1, "all rows have the same number of cells"


def luminance(color: str) -> float:
    def linear(value: float) -> float:
        return value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(color[start : start + 2], 16) / 255) for start in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """WCAG 2.2, success criterion 1.4.3."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_have_sufficient_contrast(scheme):
    style = STYLE.read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\n\s*\}", style, re.DOTALL)[:2]
    colors = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", light if scheme == "light" else dark))
    backgrounds = ["page", "card", "sunk"]
    pairs = [(text, background) for text in ("text", "muted", "blue") for background in backgrounds]
    pairs += [("green", "good-wash"), ("red", "bad-wash"), ("amber", "warn-wash"), ("blue", "busy-wash")]
    pairs += [(text, "card") for text in ("green", "red", "amber")]
    pairs += [("text", f"{tone}-wash") for tone in ("good", "bad", "warn", "busy")]
    pairs += [("muted", f"{tone}-wash") for tone in ("bad", "warn", "busy")]
    weak = {pair: round(ratio, 2) for pair in pairs if (ratio := contrast(colors[pair[0]], colors[pair[1]])) < 4.5}
    assert not weak
    lines = ["blue", "orange", "green", "violet", "amber", "grey"]
    faint = {line: round(ratio, 2) for line in lines if (ratio := contrast(colors[line], colors["card"])) < 3.0}
    assert not faint


def test_report_of_a_long_run_is_small_and_fast(tmp_path, example):
    example.start()
    example.train_step()
    last = json.loads(example.run.events.read_text(encoding="utf-8").splitlines()[-1])
    with open(example.run.events, "a", encoding="utf-8") as file:
        for step in range(2, 10_001):
            file.write(json.dumps({**last, "step": step}) + "\n")
    start = time.perf_counter()
    path = write_report(example.run)
    assert time.perf_counter() - start < 20
    assert path.stat().st_size < 1_000_000


def test_writing_does_not_import_torch(finished):
    script = """
import sys
from pathlib import Path
from tunesmith.configs.tasks import TASKS
from tunesmith.report.measures import DEFINITIONS
from tunesmith.report.page import write_report
from tunesmith.report.prove import prove
from tunesmith.rundir.paths import RunDir
run = RunDir(Path(sys.argv[1]))
write_report(run), prove(run)
print(sorted({"torch", "transformers", "safetensors", "tokenizers", "pandas"} & set(sys.modules)))
"""
    arguments = [sys.executable, "-c", script, str(finished.run.root)]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_report_is_replaced_atomically(finished):
    finished.run.report.write_text("old")
    assert write_report(finished.run) == finished.run.report
    assert not list(Path(finished.run.root).glob(".report*"))
