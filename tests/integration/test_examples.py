"""The worked examples of docs/examples.md, run at small scale from the shipped recipes."""

import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.event_lines import event_lines
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from make_clinical_notes import notes  # noqa: E402

SMALL = {
    "checkpoint": {"every_steps": 1000},
    "evaluation": {"every_steps": 1000, "num_answers": 1, "max_new_tokens": 8},
}


@pytest.fixture
def example(project):
    """example(name, rows, model, **sections): the shipped recipe with these rows and this model, in the project."""

    def write(name: str, rows: list[dict], model: Path, **sections) -> Path:
        recipe = yaml.safe_load((ROOT / "configs" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
        (project.directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe["model"]["base"] = str(model)
        recipe["data"] |= {"train": ["rows.jsonl"], "validation": 0.25}
        recipe |= SMALL
        for section, values in sections.items():
            recipe[section] = {**recipe.get(section, {}), **values}
        path = project.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return path

    return write


def test_clinical_notes_are_learned_without_storing_identifiers(project, example, tiny_llama, tmp_path):
    pytest.importorskip("presidio_analyzer")
    rows, identifiers = notes(60, seed=1)
    broken = [json.dumps({"text": rows[0]["text"]})[:-1], json.dumps({"text": rows[1]["text"], "label": 1.5})]
    recipe = example(
        "clinical-notes",
        rows,
        tiny_llama,
        data={"max_rejects": 2, "max_seq_len": 512},
        optimization={"learning_rate": 3.0e-3, "epochs": 2, "global_batch_size": 8},
    )
    with open(project.directory / "rows.jsonl", "a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in broken))
    cache = tmp_path / "own-cache"
    run = project.train(recipe, "run", TUNESMITH_CACHE=str(cache))

    counts = json.loads((run.receipts / "summary.json").read_text())["deidentified"]
    assert counts["person"] >= 5 * len(rows)
    assert counts["date"] >= 3 * len(rows)
    assert counts["phone"] >= len(rows)
    assert counts["number"] >= len(rows)
    by_row = [json.loads(line) for line in (run.receipts / "deidentified.jsonl").read_text().splitlines()]
    assert {entry["row"] for entry in by_row} >= set(range(len(rows)))

    removed = {identifier.lower() for identifier in identifiers}
    files = [path for root in (run.root, cache) for path in root.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes().decode("utf-8", "ignore").lower()
        assert not [identifier for identifier in removed if identifier in content], path
    assert any("withheld" in path.read_text() for path in files if path.name == "rejects.jsonl")
    # The token indexes are decoded and searched as well.
    tokenizer = Tokenizer.load(tiny_llama)
    words = set()
    for path in sorted(cache.rglob("index.json")):
        index = TokenIndex.open(path.parent)
        for number in range(index.num_documents):
            text = tokenizer.decode(index.document(number).tokens[:-1].tolist()).lower()
            assert not [identifier for identifier in removed if identifier in text]
            words.update(text.split())
    assert {"patient:", "mrn:", "admitted"} <= words

    _, after = evaluations(run)
    assert after["classification"]["kind"] == "binary"
    config = json.loads((run.export / "config.json").read_text())
    assert config["id2label"] == {"0": "readmitted"}


def test_support_bot_is_learned(project, example, tiny_llama, chat_rows):
    run = project.train(
        example("support-bot", chat_rows, tiny_llama, optimization={"learning_rate": 1e-2, "epochs": 3}), "run"
    )
    before, after = evaluations(run)
    assert after["loss"] < before["loss"] - 1.0


def test_style_is_learned(project, example, tiny_llama):
    draw = random.Random(0)
    words = ["parcel", "refund", "invoice", "password", "printer", "account"]
    rows = [
        {
            "prompt": f"Rewrite in our style: the {word} no {number} is ready",
            "completion": f"Dear friend, rejoice! {word.capitalize()} {number} is ready for you.",
        }
        for word, number in ((draw.choice(words), draw.randint(1, 999)) for _ in range(48))
    ]
    run = project.train(example("style", rows, tiny_llama, optimization={"learning_rate": 1e-2, "epochs": 3}), "run")
    before, after = evaluations(run)
    assert after["loss"] < before["loss"] - 1.0


def test_plain_text_is_learned(project, example, tiny_llama):
    rows = [{"text": f"The licence of part {n} grants every user the right to copy it. " * 6} for n in range(24)]
    sections = {
        "optimization": {"learning_rate": 5e-3, "epochs": 4, "global_batch_size": 2},
        "data": {"max_seq_len": 128},
    }
    run = project.train(example("plain-text", rows, tiny_llama, **sections), "run")
    before, after = evaluations(run)
    assert after["loss"] < before["loss"] - 1.0


def test_preferences_are_learned(project, example, tiny_llama):
    rows = [
        {"prompt": f"Where is parcel {n}?", "chosen": f"Gladly: {n} left today.", "rejected": f"{n}? Ask someone else."}
        for n in range(48)
    ]
    run = project.train(
        example("preference", rows, tiny_llama, optimization={"learning_rate": 2e-3, "epochs": 3}), "run"
    )
    before, after = evaluations(run)
    assert after["preference"]["margin"] > before["preference"]["margin"] + 0.05
    assert after["token_accuracy"] > 0.9


def test_kto_separates_good_and_bad_answers(project, example, tiny_llama):
    rows = [
        {"prompt": f"Where is parcel {n}?", "completion": answer.format(n), "label": label}
        for n in range(32)
        for answer, label in (("Gladly: {} left today.", True), ("{}? Ask someone else.", False))
    ]
    run = project.train(example("kto", rows, tiny_llama, optimization={"learning_rate": 2e-3, "epochs": 3}), "run")
    before, after = evaluations(run)
    assert after["kto"]["margin"] > before["kto"]["margin"] + 0.05
    assert after["token_accuracy"] > 0.9


@pytest.mark.weights
def test_dpo_increases_the_margin_of_smollm2_on_held_out_pairs(project, example, smollm2):
    words = ["parcel", "refund", "invoice", "password", "printer", "account", "battery", "contract"]
    rows = [
        {
            "prompt": f"{ask} my {word}?",
            "chosen": f"Gladly: your {word} is ready.",
            "rejected": f"The {word}? Ask others.",
        }
        for word in words
        for ask in ("Where is", "What about")
    ]
    sections = {"optimization": {"learning_rate": 5e-4, "global_batch_size": 4, "epochs": 2, "warmup_fraction": 0.0}}
    recipe = example("preference", rows, smollm2, **sections, evaluation={"num_answers": 0})
    before, after = evaluations(project.train(recipe, "run"))
    assert abs(before["preference"]["margin"]) < 1e-3
    assert before["loss"] == pytest.approx(0.693147, abs=1e-3)
    assert after["preference"]["margin"] > 0.1
    assert after["token_accuracy"] == 1.0


SIX = ("rec.sport.hockey", "sci.space", "sci.med", "comp.graphics", "talk.politics.guns", "rec.autos")


def posts_of(names: Sequence[str], each: int) -> list[dict]:
    """Return real posts of these newsgroups, the same number of each."""
    topics = Path(os.environ.get("TUNESMITH_TOPICS", ROOT / "demo" / "data" / "topics" / "train.jsonl"))
    if not topics.is_file():
        pytest.skip("the newsgroup posts are missing: run `make topics`")
    posts = [json.loads(line) for line in topics.read_text(encoding="utf-8").splitlines()]
    return [row for name in names for row in [post for post in posts if post["label"] == name][:each]]


def require_topics_learned(run) -> float:
    """Return the macro-F1; require it to be far above the untrained model and the majority class."""
    before, after = evaluations(run)
    macro = after["classification"]["metrics"]["f1_macro"]
    assert macro > before["classification"]["metrics"]["f1_macro"] + 0.4
    assert macro > after["classification"]["majority"]["f1_macro"] + 0.4
    lines = [json.loads(line) for line in run.evaluation(after["step"]).read_text().splitlines()]
    accuracy = np.mean([line["label"] == line["predicted"] for line in lines])
    assert accuracy == pytest.approx(after["classification"]["metrics"]["accuracy"])
    return macro


@pytest.mark.weights
def test_minilm_classifies_real_topics(project, example):
    minilm = Path(os.environ.get("TUNESMITH_MINILM", ROOT / "models" / "minilm"))
    if not (minilm / "model.safetensors").is_file():
        pytest.skip("MiniLM is missing: run `make topics`")
    sections = {
        "data": {"max_seq_len": 48, "max_rejects": 0},
        "optimization": {"learning_rate": 3.0e-4, "global_batch_size": 16, "epochs": 2},
    }
    run = project.train(example("topics", posts_of(SIX, 60), minilm, **sections), "run")
    assert require_topics_learned(run) > 0.75


@pytest.mark.soak
@pytest.mark.weights
def test_llama_with_a_classification_head_classifies_real_topics(project, example, smollm2):
    sections = {
        "data": {"max_seq_len": 48, "max_rejects": 0},
        "optimization": {"learning_rate": 5.0e-4, "global_batch_size": 8, "epochs": 2},
    }
    posts = posts_of(SIX[:3], 60)
    require_topics_learned(project.train(example("classify-llama", posts, smollm2, **sections), "run"))


def evaluations(run) -> tuple[dict, dict]:
    before, after = (
        next(event for event in event_lines(run.events, "evaluation") if event["when"] == when)
        for when in ("before", "after")
    )
    return before, after
