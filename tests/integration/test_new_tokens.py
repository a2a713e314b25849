"""A task that needs new tokens: learned, resumed, exported and loaded by plain transformers and peft."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.event_lines import event_lines
from tests.integration.conftest import Project, make_project
from tunesmith.rundir.paths import RunDir

KEYS, VALUES = ([f"<{letter}{i}>" for i in range(4)] for letter in "kv")
FORMS = [start + " {}" + end for start in ("where is", "find", "show") for end in ("", "?", " now")]
HELD_OUT = FORMS.pop(4)


def row(number: int, form: str) -> str:
    messages = [
        {"role": "user", "content": form.format(KEYS[number])},
        {"role": "assistant", "content": VALUES[3 - number]},
    ]
    return json.dumps({"messages": messages}) + "\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory, wide_llama, chat_rows) -> Project:
    """Questions about tokens whose embeddings are all equal before training, so that no other weight tells them
    apart."""
    project = make_project(tmp_path_factory.mktemp("tokens"), wide_llama, chat_rows)
    (project.directory / "chats.jsonl").write_text("".join(row(i, form) for form in FORMS for i in range(4)))
    (project.directory / "held.jsonl").write_text("".join(row(i, HELD_OUT) for i in range(4)))
    project.recipe["model"]["add_tokens"] = [*KEYS, *({"token": token} for token in VALUES)]
    project.recipe["data"] = {
        "train": ["chats.jsonl"],
        "validation": ["held.jsonl"],
        "max_seq_len": 64,
        "packing": False,
    }
    project.recipe["optimization"] = {"learning_rate": 1e-2, "global_batch_size": 4, "epochs": 16}
    project.recipe["method"] |= {"lora_rank": 8, "lora_alpha": 16}
    project.recipe["checkpoint"] = {"every_steps": 40}
    project.recipe["evaluation"] = {"num_answers": 4, "max_new_tokens": 6}
    return project


@pytest.fixture(scope="module")
def run(project) -> RunDir:
    return project.train(project.write(), "run")


def steps_of(run: RunDir) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in event_lines(run.events, "step")}


def newest(run: RunDir) -> dict[str, torch.Tensor]:
    return load_file(max(run.checkpoints.glob("step-*[0-9]")) / "model.safetensors")


def test_task_that_the_base_cannot_do_is_learned(run):
    before, after = (
        next(e for e in event_lines(run.events, "answers") if e["when"] == when)["items"]
        for when in ("before", "after")
    )
    assert not any(item["answer"] == item["reference"] for item in before)
    assert [item["answer"] for item in after] == [item["reference"] for item in after]
    assert all(item["reference"] in VALUES for item in after)


@pytest.mark.cold  # a kill: the worker must be the process that its launcher started
def test_run_killed_between_checkpoints_resumes_bit_for_bit(project, run):
    recipe = project.write("killed.yaml")
    result = project.run("train", recipe, "--run-dir", "killed", TUNESMITH_FAULT="step.update:55=kill")
    assert result.returncode == 1, result.stdout + result.stderr
    resumed = project.run("resume", "killed")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    killed = RunDir(project.directory / "killed")
    assert steps_of(killed) == steps_of(run)
    expected, weights = newest(run), newest(killed)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default"
    assert weights[name].shape == (8, 64)


def test_export_answers_in_plain_transformers_and_other_rows_keep_their_bits(project, run, wide_llama):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (exported,) = event_lines(run.events, "export")
    assert exported["form"] == "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run.export), AutoTokenizer.from_pretrained(run.export)
    base = AutoModelForCausalLM.from_pretrained(wide_llama)
    assert model.config.vocab_size == len(tokenizer) == 392
    old, new = base.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(new[:384], old)
    assert len(torch.unique(new[384:], dim=0)) == 8
    for number in range(4):
        assert answer_of(model, tokenizer, number) == VALUES[3 - number]


def answer_of(model, tokenizer, number: int) -> str:
    messages = [{"role": "user", "content": HELD_OUT.format(KEYS[number])}]
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    output = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=6, do_sample=False)
    return tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def adapter(project, run) -> Path:
    """The run's adapter, exported through the gate."""
    from tunesmith.training.export.export import export_from_checkpoint

    export = export_from_checkpoint(run, form="adapter", to=project.directory / "adapter")
    assert export.gate["passed"]
    return export.path


def test_adapter_is_loaded_by_plain_peft_on_the_resized_base(adapter, wide_llama):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = json.loads((adapter / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]) == wide_llama
    base = AutoModelForCausalLM.from_pretrained(wide_llama)
    base.resize_token_embeddings(392, mean_resizing=False)
    model, tokenizer = PeftModel.from_pretrained(base, str(adapter)), AutoTokenizer.from_pretrained(adapter)
    assert [answer_of(model, tokenizer, number) for number in range(4)] == VALUES[::-1]
    assert "resize_token_embeddings(392" in (adapter / "README.md").read_text()


def test_engine_answers_with_the_merged_model_and_with_the_adapter(run, adapter, wide_llama):
    from tunesmith.inference.batched_model import BatchedModel
    from tunesmith.inference.rendering import render_prompt
    from tunesmith.inference.sequence import Generation
    from tunesmith.inference.types import Sampling

    for directory, name in ((run.export, ""), (wide_llama, str(adapter))):
        model = BatchedModel(directory, torch.device("cpu"), 4096, lambda: 1 << 30)
        if name:
            model.adapters.use(name)
        sequences = []
        for number in range(4):
            messages = [{"role": "user", "content": HELD_OUT.format(KEYS[number])}]
            prompt = render_prompt(Path(name or directory), messages, None)
            sequences.append(Generation(number, "", name, prompt, model.tokenizer(name), Sampling(6), 6))
            model.join(sequences[-1])
        starts = [len(sequence.tokens) for sequence in sequences]
        while model.active:
            model.step()
        answers = [
            model.tokenizer(name).decode(sequence.tokens[start:])
            for sequence, start in zip(sequences, starts, strict=True)
        ]
        assert answers == VALUES[::-1]
