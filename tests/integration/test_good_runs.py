"""No verdict of training.learning ends a run that learns: complete runs of many kinds, and runs that cannot learn."""

import json
import os
from pathlib import Path

import pytest

from tests.event_lines import event_lines
from tests.integration.test_tasks import (  # noqa: F401
    models,
    pair_rows,
    task_of,
    tiny_bert,
    tiny_gpt2,
    tiny_t5,
    topic_rows,
    write_rows,
)

LORA = {"kind": "lora", "lora_rank": 4, "lora_alpha": 8}
FULL = {"kind": "full"}
ONE_EPOCH = {"epochs": 1, "learning_rate": 2e-4}
CHATS = {
    "lora": {},
    "lora, recipe defaults": {"method": {"kind": "lora"}, "optimization": {"learning_rate": 2e-4}},
    "full": {"method": FULL, "optimization": {"learning_rate": 1e-3}},
    "full, low rate": {"method": FULL, "optimization": {"learning_rate": 2e-5}},
    "last layers": {"method": {"kind": "last_layers", "num_layers": 1}},
    "dora": {"method": {**LORA, "use_dora": True}},
    "rslora with dropout": {"method": {**LORA, "use_rslora": True, "lora_dropout": 0.1}},
    "qlora": {"method": {**LORA, "kind": "qlora"}},
    "constant schedule": {"optimization": {"schedule": "constant"}},
    "linear schedule with warmup": {"optimization": {"schedule": "linear", "warmup_fraction": 0.3}},
    "one step": {"optimization": {**ONE_EPOCH, "max_steps": 1}},
    "two steps at a low rate": {"optimization": {"learning_rate": 2e-5, "max_steps": 2}},
    "one row per step": {"optimization": {**ONE_EPOCH, "global_batch_size": 1, "micro_batch_size": 1}},
    "one epoch without validation": {"optimization": ONE_EPOCH, "data": {"validation": 0.0}},
    "overfitted": {"method": FULL, "optimization": {"learning_rate": 5e-3, "epochs": 20}},
    "high rate": {"optimization": {"learning_rate": 5e-2, "epochs": 8, "schedule": "constant"}},
    "early stopping": {
        "optimization": {"epochs": 40, "learning_rate": 5e-2, "schedule": "constant"},
        "evaluation": {"every_steps": 2, "early_stopping": {"patience": 2}},
    },
    "8-bit AdamW": {"method": FULL, "optimization": {"optimizer": "adamw_8bit", "learning_rate": 1e-3}},
    "label smoothing": {"optimization": {"label_smoothing": 0.1, "z_loss": 1e-4}},
    "noise and dropout": {"optimization": {"neftune_alpha": 5, "dropout": 0.1}},
}
DPO = {
    "task": "preference",
    "method": LORA,
    "optimization": {"global_batch_size": 8, "epochs": 3, "learning_rate": 2e-3},
}
SHIPPED = {"global_batch_size": 16, "epochs": 1, "learning_rate": 2e-5, "warmup_fraction": 0.1}
TASKS = {
    "dpo": DPO,
    "dpo at the shipped rate": {**DPO, "optimization": SHIPPED},
    "ipo": {**DPO, "preference": {"loss": "ipo"}},
    "orpo": {**DPO, "preference": {"loss": "orpo"}},
    "kto": {**DPO, "task": "kto"},
    "kto at the shipped rate": {**DPO, "task": "kto", "optimization": SHIPPED},
    "classification": {"task": "classification", "method": FULL, "optimization": {"learning_rate": 5e-3, "epochs": 4}},
    "classification with lora": {"task": "classification", "method": LORA, "optimization": {"epochs": 2}},
    "multi-label": {
        "task": "multi_label",
        "optimization": {"learning_rate": 1e-4, "epochs": 1, "global_batch_size": 32},
    },
    "translation": {"task": "seq2seq", "method": FULL, "optimization": {"learning_rate": 1e-2, "epochs": 10}},
    "translation with lora": {"task": "seq2seq", "method": LORA, "optimization": {"epochs": 3}},
}
BAD = {
    "lora at 1e10": ({"optimization": {"learning_rate": 1e10}}, {"gradient_zero", "loss_not_finite"}),
    "lora at 1": ({"optimization": {"learning_rate": 1.0}}, {"adapter_saturated"}),
    "lora at 1e-9": ({"optimization": {"learning_rate": 1e-9}}, {"learning_rate_too_low"}),
    "lora at 0": ({"optimization": {"learning_rate": 0.0}}, {"learning_rate_too_low"}),
    "full at 1e10": ({"method": FULL, "optimization": {"learning_rate": 1e10}}, {"loss_not_finite"}),
    "full at 1, short": ({"method": FULL, "optimization": {"learning_rate": 1.0, "max_steps": 4}}, {"loss_rose"}),
    "full at 1e-10": ({"method": FULL, "optimization": {"learning_rate": 1e-10}}, {"learning_rate_too_low"}),
    "two processes at 1e10": (
        {"optimization": {"learning_rate": 1e10}, "resources": {"workers": 2}},
        {"gradient_zero", "loss_not_finite"},
    ),
    "two processes at 0": (
        {"optimization": {"learning_rate": 0.0}, "resources": {"workers": 2}},
        {"learning_rate_too_low"},
    ),
    "dora at 1e10": (
        {"method": {**LORA, "use_dora": True}, "optimization": {"learning_rate": 1e10}},
        {"gradient_zero", "loss_not_finite"},
    ),
}


@pytest.mark.soak
@pytest.mark.parametrize("kind", CHATS)
def test_a_chat_run_that_learns_ends_with_success(project, kind):
    recipe = project.write(**{"evaluation": {"num_answers": 0}, **CHATS[kind]})
    record(kind, project.train(recipe, "run"))


@pytest.mark.soak
@pytest.mark.parametrize("kind", TASKS)
def test_a_run_of_another_task_that_learns_ends_with_success(project, models, kind):  # noqa: F811
    sections = {"evaluation": {"num_answers": 0}, **TASKS[kind]}
    recipe = project.write(**{**task_of(project, sections["task"], models), **sections, "task": task_name(sections)})
    record(kind, project.train(recipe, "run"))


@pytest.mark.soak
@pytest.mark.parametrize("kind", BAD)
def test_a_run_that_cannot_learn_ends_with_a_code(project, kind):
    sections, codes = BAD[kind]
    result = project.run("train", project.write(**{"evaluation": {"num_answers": 0}, **sections}), "--run-dir", "run")
    assert result.returncode == 1
    assert "what to do" in result.stderr
    assert "Traceback" not in result.stderr
    directory = project.directory / "run"
    (error,) = event_lines(directory / "events.jsonl", "error")
    assert error["code"] in codes
    assert not (directory / "export").exists()


def task_name(sections: dict) -> str:
    return "classification" if sections["task"] == "multi_label" else sections["task"]


def record(kind: str, run) -> None:
    """With TUNESMITH_RECORD, add the run's numbers to tests/training/recorded/learning.json."""
    path = Path(__file__).parents[1] / "training" / "recorded" / "learning.json"
    if not os.environ.get("TUNESMITH_RECORD"):
        return
    runs = json.loads(path.read_text()) if path.is_file() else {}
    scores = ("loss", "loss_error", "token_accuracy", "num_tokens")
    evaluations = {
        event["when"]: {name: event[name] for name in scores} for event in event_lines(run.events, "evaluation")
    }
    steps = [
        [
            e["loss"],
            round(e["token_accuracy"] * e["supervised_tokens"]),
            e["supervised_tokens"],
            e["grad_norm"],
            e["learning_rate"],
        ]
        for e in event_lines(run.events, "step")
    ]
    runs[kind] = {"before": evaluations.get("before"), "after": evaluations.get("after"), "steps": steps}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(runs) + "\n")
