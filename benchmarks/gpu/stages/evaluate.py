"""A finished run: sample answers, the export's gate, evaluation against the base model, and chat."""

import json
from pathlib import Path

from benchmarks.gpu.product import events, trained, tunesmith
from benchmarks.gpu.recipes import chat_recipe
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting


def run(setting: Setting, record: Record) -> None:
    run = finished(setting)
    gates = [event["gate"] for event in events(run, "export")]
    record.figure("gate", gates)
    record.check("the export passed its gate", [gate["passed"] for gate in gates], "equals", [True])
    before, *_, after = (event["loss"] for event in events(run, "evaluation"))
    record.figure("validation loss before and after", [before, after])
    record.check("fall of the validation loss", before - after, "at least", 1e-3)
    answers = [item["answer"] for event in events(run, "answers") for item in event["items"]]
    record.check("sample answers", len(answers), "equals", 4)
    rows = chat_recipe(setting, "lora")["data"]["train"][0]
    out = setting.work / "evaluation"
    tunesmith(setting, "evaluate", run, "--data", rows, "--out", out, "--metrics", "exact_match")
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*.json"))]
    record.figure("evaluation", results)
    record.check("result files of the evaluation", len(results), "at least", 1)
    reply = tunesmith(setting, "chat", run, "Question 3: what about my delivery?", "--max-new-tokens", 8, "--json")
    answer = json.loads(reply)
    record.figure("chat", answer)
    record.check("tokens of the answer", answer["num_tokens"], "at least", 1)
    if not setting.short:
        tunesmith(setting, "export", run, "--merge", "--to", setting.work / "merged")
        record.check("merged export", (setting.work / "merged" / "model.safetensors").is_file(), "equals", True)


def finished(setting: Setting) -> Path:
    """The uninterrupted run of the stage `resume`, or a new one."""
    run = setting.work / "runs" / "whole-lora"
    if events(run, "export"):
        return run
    return trained(setting, "whole-lora", chat_recipe(setting, "lora"))
