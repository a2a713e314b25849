"""Results of a run: a trained model, an export that transformers loads, and helpful errors."""

import json

import pytest
import torch

from tests.event_lines import event_lines


def test_merged_export_reproduces_the_trained_model_in_transformers(project, chat_rows):
    """After training, only transformers code is used. The model has learned to end its answers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = project.write(
        method={"kind": "lora", "lora_rank": 16, "lora_alpha": 16},
        optimization={"epochs": 30, "learning_rate": 2e-2},
        checkpoint={"every_steps": 1000},
        evaluation={"every_steps": 1000, "num_answers": 3, "max_new_tokens": 160},
        export={"form": "merged"},
    )
    run = project.train(recipe, "run")
    before, after = (
        next(e for e in event_lines(run.events, "evaluation") if e["when"] == when) for when in ("before", "after")
    )
    assert after["loss"] < before["loss"] - 2.0
    (export,) = event_lines(run.events, "export")
    assert export["form"] == "model"
    assert export["gate"]["max_logit_difference"] <= 1e-3

    model, tokenizer = AutoModelForCausalLM.from_pretrained(run.export), AutoTokenizer.from_pretrained(run.export)
    answers = next(e for e in event_lines(run.events, "answers") if e["when"] == "after")["items"]
    for item in answers:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": item["prompt"]}], add_generation_prompt=True, return_tensors="pt"
        )
        tokens = prompt["input_ids"]
        output = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=160, do_sample=False)
        answer = tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True)
        assert answer.strip() == item["answer"].strip()
    assert any(item["stopped"] for item in answers)


BAD = {
    "broken": ('{"messages": [', "JSON"),
    "role": (
        json.dumps({"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        "user",
    ),
    "empty": (
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}),
        "empty",
    ),
    "long": (
        json.dumps({"messages": [{"role": "user", "content": "a " * 600}, {"role": "assistant", "content": "b"}]}),
        "256",
    ),
    "no answer": (json.dumps({"messages": [{"role": "user", "content": "a"}]}), "assistant"),
}


@pytest.mark.parametrize("fault", BAD)
def test_invalid_row_stops_the_run_with_file_line_and_remedy(project, chat_rows, fault):
    line, expected = BAD[fault]
    data = project.directory / "chats.jsonl"
    data.write_text(data.read_text() + line + "\n")
    result = project.run("train", project.write(), "--run-dir", "bad")
    assert result.returncode == 2
    assert f"chats.jsonl:{len(chat_rows) + 1}" in result.stderr
    assert expected in result.stderr
    assert "what to do" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (project.directory / "bad" / "checkpoints").is_dir() or not any(
        (project.directory / "bad" / "checkpoints").iterdir()
    )


def test_allowed_rejects_are_recorded_and_the_rest_is_trained(project, chat_rows):
    data = project.directory / "chats.jsonl"
    bad = [line for line, _ in BAD.values()]
    data.write_bytes(data.read_bytes() + "".join(line + "\n" for line in bad).encode() + b'{"messages": "\xff\xfe"}\n')
    run = project.train(project.write(data={"max_rejects": 6}), "tolerant", "--set", "optimization.max_steps=2")
    rejects = [json.loads(line) for line in run.rejects.read_text().splitlines()]
    assert [reject["line"] for reject in rejects] == list(range(len(chat_rows) + 1, len(chat_rows) + 7))
    assert all(reject["reason"] and reject["remedy"] for reject in rejects)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_empty_file_is_rejected(project, content):
    (project.directory / "chats.jsonl").write_bytes(content)
    result = project.run("train", project.write(), "--run-dir", "empty")
    assert result.returncode == 2
    assert "chats.jsonl" in result.stderr
    assert "Traceback" not in result.stderr


def test_run_that_learns_nothing_fails(project):
    """With a learning rate of zero the run must not succeed."""
    result = project.run("train", project.write(optimization={"learning_rate": 0.0, "epochs": 1}), "--run-dir", "zero")
    assert result.returncode == 1
    assert "learning" in result.stderr
    assert "Traceback" not in result.stderr
    (error,) = event_lines(project.directory / "zero" / "events.jsonl", "error")
    assert error["code"] == "learning_rate_too_low"
    assert not (project.directory / "zero" / "export").exists()


def test_early_stopping_exports_the_best_weights(project):
    recipe = project.write(
        optimization={"epochs": 40, "learning_rate": 5e-2, "schedule": "constant"},
        evaluation={"every_steps": 2, "early_stopping": {"patience": 2}},
        checkpoint={"every_steps": 1000, "keep_last": 1},
    )
    run = project.train(recipe, "early")
    evaluations = [e for e in event_lines(run.events, "evaluation") if e["when"] == "during"]
    (after,) = [e for e in event_lines(run.events, "evaluation") if e["when"] == "after"]
    best = min(evaluations, key=lambda e: e["loss"])
    assert evaluations[-1]["step"] > best["step"]
    assert after["step"] == best["step"]
    assert after["loss"] == pytest.approx(best["loss"], abs=1e-6)
    (end,) = event_lines(run.events, "end")
    assert end["outcome"] == "early_stopped"
