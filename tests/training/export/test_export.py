"""Exports loaded with plain transformers and peft, compared with the live model."""

import json
import math
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.event_lines import an_event
from tunesmith.configs.plan import BatchFacts, ComputeFacts, DataFacts, Plan, SplitFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Full, Lora
from tunesmith.data.index.loader import micro_batch
from tunesmith.data.index.token_index import TokenIndex, write_index
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError, RunFault
from tunesmith.evaluation.trained import load_trained, tokenizer_of
from tunesmith.kernels.varlen_attention import Documents
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.base_model.facts import model_facts
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import autocast_to
from tunesmith.rundir.commit import verify
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoint.checkpoints import save_checkpoint
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.plain import PlainEngine
from tunesmith.training.export import export as export_module
from tunesmith.training.export.export import Export, export_from_checkpoint, export_run

LORA = {"kind": "lora", "lora_rank": 4, "lora_alpha": 8}
METHODS = {
    "lora": LORA,
    "lora-head": {**LORA, "target_modules": ["q_proj", "lm_head"]},
    "lora-embedding": {**LORA, "target_modules": ["v_proj", "embed_tokens"]},
    "full": {"kind": "full"},
    "last_layers": {"kind": "last_layers", "num_layers": 1},
}
HEXES = "0" * 64


class Trained:
    """A run directory with its plan and index, and a model that `train` moves well away from its base."""

    def __init__(self, base: Path, root: Path, method: dict, *, precision: str = "fp32", recipe: dict | None = None):
        self.run = RunDir(root)
        self.run.create()
        self.tokenizer = Tokenizer.load(base)
        self.documents = self._documents()
        index = write_index(root / "index", self.documents, max_seq_len=512)
        values = {"name": "demo", "model": {"base": "bases/tiny"}, "data": {"train": ["private/rows.jsonl"]}}
        values |= {"method": method, **(recipe or {})}
        self.plan = make_plan(base, root / "index", index, Recipe.model_validate(values), precision)
        self.plan.write(self.run.plan)
        bf16 = precision == "bf16"
        model = load_model(
            base, dtype=torch.bfloat16 if bf16 and method["kind"] == "lora" else torch.float32, attention=PACKED
        )
        self.model = apply_method(causal_lm(model), self.plan.recipe.method, dropout=0.1, seed=1)
        self.loss = CausalLoss(self.model, compute_dtype=torch.bfloat16 if bf16 else None)

    def train(self, steps: int = 6, learning_rate: float = 2e-2) -> "Trained":
        torch.manual_seed(0)
        samples = [self._sample(number) for number in range(8)]
        batch = micro_batch(samples)
        optimizer = torch.optim.AdamW(trained_parameters(self.model).values(), lr=learning_rate)
        self.loss.train()
        for _ in range(steps):
            tensors = (torch.from_numpy(array) for array in (batch.tokens, batch.labels, batch.positions))
            sums = self.loss(*tensors, batch.lengths)
            (sums.loss_sum / sums.num_supervised).backward()
            optimizer.step()
            optimizer.zero_grad()
        return self

    def export(self, **options) -> Export:
        return export_run(self.model, self.run, self.plan, self.tokenizer, **options)

    def save(self, step: int, **state) -> Path:
        """A checkpoint of the live weights, as the training loop writes it."""
        parameters, optimization = trained_parameters(self.model), self.plan.recipe.optimization
        engine = PlainEngine(self.loss, parameters, optimization, Ranks(0, 0, 1), device="cpu")
        return save_checkpoint(self.run, RunState(step=step, **state), engine, attempt=1, fingerprints={})

    def logits(self) -> list[torch.Tensor]:
        """fp32 [T, V] of the first documents, by the live model as in training: all packed in one stream."""
        batch = micro_batch([self._sample(number) for number in range(4)])
        self.loss.eval()
        with torch.no_grad(), autocast_to(self.loss.compute_dtype, torch.device("cpu")):
            output = causal_lm(self.model)(
                input_ids=torch.from_numpy(batch.tokens)[None],
                position_ids=torch.from_numpy(batch.positions)[None],
                documents=Documents(batch.lengths),
                use_cache=False,
            )
        return list(output.logits[0].float().split(batch.lengths))

    def _sample(self, number: int):
        return TokenIndex.open(self.run.root / "index").document(number)

    def _documents(self) -> list[tuple]:
        documents = []
        for number in range(12):
            prompt = self.tokenizer.encode(f"<|im_start|>user\nQuestion {number}?<|im_end|>\n<|im_start|>assistant\n")
            answer = self.tokenizer.encode("The licence says so. " * (1 + number % 3) + "<|im_end|>")
            documents.append((prompt + answer, [False] * len(prompt) + [True] * len(answer), number))
        return documents


def make_plan(base: Path, index_directory: Path, index: TokenIndex, recipe: Recipe, precision: str) -> Plan:
    split = SplitFacts(
        index=str(index_directory),
        num_rows=index.num_documents,
        num_samples=index.num_samples,
        num_tokens=index.num_tokens,
        supervised_tokens=index.supervised_tokens,
        longest_tokens=60,
    )
    return Plan(
        tunesmith_version="0",
        recipe=recipe,
        model=model_facts(base, "bases/tiny", recipe.method),
        data=DataFacts(
            fingerprint=HEXES,
            train=split,
            validation=split,
            num_rejected=0,
            num_dropped=0,
            num_truncated=0,
            num_duplicates=0,
        ),
        batch=BatchFacts(
            micro_batch_size=4,
            grad_accum_steps=1,
            steps_per_epoch=3,
            total_steps=9,
            warmup_steps=0,
            checkpoint_every_steps=3,
            evaluation_every_steps=None,
        ),
        compute=ComputeFacts(
            device="cpu",
            precision=precision,
            gradient_checkpointing=False,
            world_size=1,
            threads_per_rank=1,
            memory_bytes=1,
            estimated_peak_bytes=1,
            checkpoint_bytes=1,
        ),
        choices=[],
    )


def plain_logits(trained: Trained, model) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(input_ids=torch.tensor([tokens])).logits[0].float() for tokens, _, _ in trained.documents[:4]]


def largest_difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", ["tiny_llama", "tiny_llama_untied"])
def test_an_exported_model_gives_the_logits_of_the_live_model(method, base, tmp_path, request):
    directory = request.getfixturevalue(base)
    trained = Trained(directory, tmp_path / "run", METHODS[method]).train()
    live = trained.logits()
    result = trained.export(form="model")
    assert result.path == trained.run.export
    assert result.gate["passed"]
    assert result.gate["greedy_equal"]
    assert result.gate["max_logit_difference"] < 1e-3

    plain = AutoModelForCausalLM.from_pretrained(result.path, dtype=torch.float32)
    assert largest_difference(plain_logits(trained, plain), live) < 1e-3
    untrained = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert largest_difference(plain_logits(trained, untrained), live) > 0.3  # the training is in the export

    split_head = base == "tiny_llama_untied" or method in ("lora-head", "lora-embedding")
    assert ("lm_head.weight" in load_file(result.path / "model.safetensors")) == split_head
    assert plain.config.tie_word_embeddings == (not split_head)


@pytest.mark.parametrize("method", ["lora", "lora-head", "lora-embedding"])
def test_an_exported_adapter_gives_the_logits_of_the_live_model(method, tiny_llama, tmp_path):
    trained = Trained(tiny_llama, tmp_path / "run", METHODS[method]).train()
    live = trained.logits()
    result = trained.export()
    assert (result.form, result.gate["passed"]) == ("adapter", True)
    assert not (result.path / "model.safetensors").exists()
    plain = AutoPeftModelForCausalLM.from_pretrained(result.path, dtype=torch.float32)
    assert largest_difference(plain_logits(trained, plain), live) < 1e-3


@pytest.mark.parametrize("form", ["adapter", "model"])
def test_an_export_leaves_the_live_model_bitwise_unchanged(form, tiny_llama, tmp_path):
    trained = Trained(tiny_llama, tmp_path / "run", LORA).train()
    trained.loss.train()
    modes = [module.training for module in trained.model.modules()]
    weights = {name: weight.clone() for name, weight in trained.model.state_dict().items()}
    config = causal_lm(trained.model).config.to_dict()
    trained.export(form=form)
    after = trained.model.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
    assert [module.training for module in trained.model.modules()] == modes
    assert causal_lm(trained.model).config.to_dict() == config
    assert causal_lm(trained.model).config._attn_implementation == PACKED
    assert trained.model.peft_config["default"].inference_mode is False


def test_transformers_alone_reproduces_logits_and_answer(tiny_llama, tmp_path, warm_python):
    """In a process without tunesmith: logits of the first row, and a greedy answer."""
    trained = Trained(tiny_llama, tmp_path / "run", LORA).train(steps=60)
    path = trained.export(form="model").path
    tokens, supervised, _ = trained.documents[0]
    prompt = tokens[: supervised.index(True)]
    program = """
import json, sys, torch
from transformers import AutoModelForCausalLM
path, tokens, prompt = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(path)
logits = model(input_ids=torch.tensor([tokens])).logits[0]
answer = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=40)[0, len(prompt):]
assert not any(name.startswith("tunesmith") for name in sys.modules)
print(json.dumps({"logits": logits.tolist(), "answer": answer.tolist()}))
"""
    command = [warm_python, "-c", program, str(path), json.dumps(tokens), json.dumps(prompt)]
    output = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert float((torch.tensor(output["logits"]) - trained.logits()[0]).abs().max()) < 1e-3
    assert output["answer"] == tokens[len(prompt) :]  # memorized, including the stop token
    assert output["answer"][-1] == trained.tokenizer.eos_token_id


def test_an_export_is_a_standard_hugging_face_directory(tiny_llama, tmp_path):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    (base / "LICENSE").write_text("Do what you want.")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\nA tiny model.\n")
    (base / "generation_config.json").write_text('{"_from_model_config": true, "eos_token_id": 0, "temperature": 0.6}')
    trained = Trained(base, tmp_path / "run", LORA, recipe={"optimization": {"dropout": 0.1}}).train()
    path = trained.export(form="model").path
    assert verify(path) is None
    written, original = (json.loads((d / "config.json").read_text()) for d in (path, base))
    assert written == original  # without Tunesmith's attention, the run's dropout and paths
    assert (path / "LICENSE").read_text() == "Do what you want."

    tokenizer = AutoTokenizer.from_pretrained(path)
    chat = [{"role": "user", "content": "Why?"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == trained.tokenizer.template.render(chat)
    assert tokenizer.encode("The licence", add_special_tokens=False) == trained.tokenizer.encode("The licence")
    generation = GenerationConfig.from_pretrained(path)
    assert generation.eos_token_id == [2, 0]  # <|im_end|>, and what the base model stopped at
    assert generation.temperature == 0.6


def test_the_chat_template_of_the_recipe_is_exported(tiny_llama, tmp_path):
    template = tmp_path / "own.jinja"
    template.write_text("{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}")
    trained = Trained(tiny_llama, tmp_path / "run", LORA).train()
    model = trained.plan.model.model_copy(update={"chat_template": str(template)})
    trained.plan = trained.plan.model_copy(update={"model": model})
    trained.tokenizer = tokenizer_of(trained.plan)
    path = trained.export().path
    shown = AutoTokenizer.from_pretrained(path).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert shown == "<|im_start|>x<|im_end|>"
    assert "chat_template" not in json.loads((path / "tokenizer_config.json").read_text())


def test_the_model_card_has_results_and_recipe_but_no_paths(tiny_llama, tmp_path):
    trained = Trained(tiny_llama, tmp_path / "run", LORA).train()
    log = EventLog(trained.run.events)
    for step, when, loss in ((0, "before", 3.25), (9, "after", 1.5)):
        log.write(
            an_event(
                "evaluation",
                step=step,
                when=when,
                loss=loss,
                perplexity=math.exp(loss),
                token_accuracy=0.5,
                num_examples=12,
            )
        )
    log.close()
    card = (trained.export(step=9).path / "README.md").read_text()
    assert "| before | 3.25 |" in card
    assert "| after | 1.5 |" in card
    assert "| train | 12 |" in card
    assert "lora_rank: 4" in card
    assert "rows.jsonl" in card
    assert "were encoded as text in training" in card
    assert "sanitize_control_tokens=True" in card
    assert str(tmp_path) not in card
    assert "private" not in card
    assert str(tiny_llama) not in card


@pytest.mark.parametrize("method", ["lora", "full", "last_layers"])
def test_a_bf16_export_stays_within_the_relative_limit(method, tiny_llama, tmp_path):
    trained = Trained(tiny_llama, tmp_path / "run", METHODS[method], precision="bf16").train()
    live = trained.logits()
    result = trained.export(form="model")
    assert result.gate["passed"]
    plain = AutoModelForCausalLM.from_pretrained(result.path)
    assert plain.dtype == torch.bfloat16
    largest = max(float(logits.abs().max()) for logits in live)
    assert largest_difference(plain_logits(trained, plain), live) < 0.05 * largest
    assert 0.0 < result.gate["max_logit_difference"] < 0.05 * result.gate["largest_logit"]
    assert 0.0 < result.gate["max_relative_difference"] < 0.05
    assert result.gate["max_relative_difference"] >= result.gate["max_logit_difference"] / result.gate["largest_logit"]
    if method == "lora":
        assert trained.export().gate["passed"]


def test_a_zero_adapter_is_rejected_before_anything_is_written(tiny_llama, tmp_path):
    trained = Trained(tiny_llama, tmp_path / "run", LORA)  # not trained: peft initializes B to zero
    before = sorted(path.name for path in trained.run.root.iterdir())
    for form in ("adapter", "model"):
        with pytest.raises(RunFault, match="all zero"):
            trained.export(form=form)
    assert sorted(path.name for path in trained.run.root.iterdir()) == before


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_weight_is_named(method, bad, tiny_llama, tmp_path):
    trained = Trained(tiny_llama, tmp_path / "run", METHODS[method]).train()
    name, weight = list(trained_parameters(trained.model).items())[3]
    with torch.no_grad():
        weight.view(-1)[7] = bad
    with pytest.raises(RunFault, match=r"1 of .* not finite") as caught:
        trained.export()
    assert caught.value.where == name
    assert not trained.run.export.exists()


def edit_tensors(directory: Path, edit) -> None:
    for path in directory.glob("*.safetensors"):
        weights = load_file(path)
        edit(weights)
        save_file(weights, path, metadata={"format": "pt"})


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def scale_one(weights: dict) -> None:
    name = next(name for name in weights if "layers.1" in name and ("q_proj" in name or "up_proj" in name))
    weights[name] = weights[name] * 1.05


def drop_one(weights: dict) -> None:
    del weights[next(name for name in weights if "layers.1" in name)]


def swap_heads(weights: dict) -> None:
    name = next(name for name in weights if "layers.0.self_attn.q_proj" in name)
    weights[name] = torch.roll(weights[name], 8, dims=0)


MODEL_DAMAGE = {
    "a weight scaled by 1.05": lambda d: edit_tensors(d, scale_one),
    "a weight missing": lambda d: edit_tensors(d, drop_one),
    "heads in another order": lambda d: edit_tensors(d, swap_heads),
    "another rotary base": lambda d: edit_json(
        d / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    ),
    "a head untied and lost": lambda d: edit_json(d / "config.json", tie_word_embeddings=False),
    "weights cut short": lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-64]),
    "no stop token": lambda d: edit_json(d / "generation_config.json", eos_token_id=None),
}
ADAPTER_DAMAGE = {
    "another alpha": lambda d: edit_json(d / "adapter_config.json", lora_alpha=9),
    "a weight missing": lambda d: edit_tensors(d, drop_one),
    "a module left out": lambda d: edit_json(
        d / "adapter_config.json",
        target_modules=[
            m for m in json.loads((d / "adapter_config.json").read_text())["target_modules"] if not m.endswith("v_proj")
        ],
    ),
}


@pytest.mark.parametrize(
    ("form", "damage"), [*(("model", name) for name in MODEL_DAMAGE), *(("adapter", name) for name in ADAPTER_DAMAGE)]
)
def test_the_gate_rejects_a_damaged_export(form, damage, tiny_llama, tmp_path, monkeypatch):
    trained = Trained(tiny_llama, tmp_path / "run", LORA).train()
    earlier = trained.export(form=form).path
    hashes = (earlier / "manifest.json").read_bytes()
    write = export_module._write

    def write_and_damage(*arguments):
        write(*arguments)
        {"model": MODEL_DAMAGE, "adapter": ADAPTER_DAMAGE}[form][damage](arguments[-1])

    monkeypatch.setattr(export_module, "_write", write_and_damage)
    with pytest.raises(RunFault, match="refused") as caught:
        trained.export(form=form)
    refused = trained.run.root / "export.refused"
    assert caught.value.where == str(refused)
    facts = json.loads((refused / "gate.json").read_text())
    assert facts["passed"] is False
    assert facts["fault"] in caught.value.what
    assert verify(refused) is not None  # it does not count as an export
    assert verify(earlier) is None
    assert (earlier / "manifest.json").read_bytes() == hashes  # the earlier export is kept
    assert sorted(path.name for path in trained.run.root.glob("export*")) == ["export", "export.refused"]
    monkeypatch.undo()
    trained.export(form=form)
    assert [path.name for path in trained.run.root.glob("export*")] == ["export"]


def test_the_gate_detects_a_flipped_bit_in_bf16(tiny_llama, tmp_path, monkeypatch):
    trained = Trained(tiny_llama, tmp_path / "run", LORA, precision="bf16").train()
    write = export_module._write

    def write_and_flip(*arguments):
        write(*arguments)
        path = arguments[-1] / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-64] ^= 1  # the lowest bit of a mantissa
        path.write_bytes(bytes(content))

    monkeypatch.setattr(export_module, "_write", write_and_flip)
    with pytest.raises(RunFault, match="is not the trained model's"):
        trained.export(form="model")


@pytest.mark.parametrize("stage", ["export.files", "export.gate", "commit.manifest"])
def test_a_full_disk_keeps_the_previous_export(stage, tiny_llama, tmp_path, monkeypatch):
    trained = Trained(tiny_llama, tmp_path / "run", LORA).train()
    path = trained.export().path
    before = (path / "manifest.json").read_bytes()
    monkeypatch.setenv("TUNESMITH_FAULT", f"{stage}=raise")
    monkeypatch.setattr("tunesmith.rundir.faults._fault_counts", {})
    with pytest.raises(RunFault, match="No space left"):
        trained.export(form="model")
    assert verify(path) is None
    assert (path / "manifest.json").read_bytes() == before
    assert [p.name for p in trained.run.root.glob("export*")] == ["export"]


@pytest.mark.parametrize("stage", ["export.files", "commit.manifest"])
def test_a_kill_during_export_leaves_no_target_and_the_next_export_succeeds(stage, tiny_llama, tmp_path, warm_python):
    trained = Trained(tiny_llama, tmp_path / "run", LORA).train()
    trained.save(6)
    program = """
import sys
from pathlib import Path
from tunesmith.rundir.paths import RunDir
from tunesmith.training.export.export import export_from_checkpoint
export_from_checkpoint(RunDir(Path(sys.argv[1])))
"""
    environment = {**os.environ, "TUNESMITH_FAULT": f"{stage}=kill"}
    command = [warm_python, "-c", program, str(trained.run.root)]
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in trained.run.root.glob("export*")] == ["export.tmp.0"]
    assert trained.export(attempt=2).gate["passed"]
    assert verify(trained.run.export) is None
    assert [path.name for path in trained.run.root.glob("export*")] == ["export"]


def test_a_user_directory_is_never_replaced(tiny_llama, tmp_path):
    trained = Trained(tiny_llama, tmp_path / "run", LORA).train()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not a Tunesmith export"):
        trained.export(to=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    for form in ("adapter", "model"):  # into an empty directory, then in place of the earlier export
        assert trained.export(to=tmp_path / "empty", form=form).form == form
    assert (tmp_path / "empty" / "model.safetensors").exists()
    assert not (tmp_path / "empty" / "adapter_model.safetensors").exists()


def test_adapter_form_requires_an_adapter(tiny_llama, tmp_path):
    trained = Trained(tiny_llama, tmp_path / "run", METHODS["full"]).train()
    with pytest.raises(InputError, match="no adapter"):
        trained.export(form="adapter")


@pytest.mark.parametrize("method", ["lora", "full", "last_layers"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_checkpoint_restores_the_model_bitwise(method, precision, tiny_llama, tmp_path):
    trained = Trained(tiny_llama, tmp_path / "run", METHODS[method], precision=precision).train()
    again = load_trained(trained.plan, trained.save(6))
    live, loaded = trained.model.state_dict(), again.state_dict()
    assert list(live) == list(loaded)
    assert all(live[name].dtype == loaded[name].dtype and torch.equal(live[name], loaded[name]) for name in live)


def test_export_from_a_checkpoint_by_step(tiny_llama, tmp_path):
    trained = Trained(tiny_llama, tmp_path / "run", LORA).train(steps=3)
    trained.save(3)
    early = trained.logits()
    trained.train(steps=5).save(8)
    late = trained.logits()
    assert largest_difference(early, late) > 0.1

    newest = export_from_checkpoint(trained.run, form="model")
    assert newest.path == trained.run.export
    assert largest_difference(plain_logits(trained, AutoModelForCausalLM.from_pretrained(newest.path)), late) < 1e-3
    assert json.loads((newest.path / "manifest.json").read_text())["step"] == 8
    third = export_from_checkpoint(trained.run, 3, to=tmp_path / "third")
    assert third.form == "adapter"
    assert largest_difference(plain_logits(trained, AutoPeftModelForCausalLM.from_pretrained(third.path)), early) < 1e-3
    with pytest.raises(InputError, match="no checkpoint of step 5") as caught:
        export_from_checkpoint(trained.run, 5)
    assert "3, 8" in str(caught.value.remedy)

    damaged = trained.run.checkpoint(8) / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 4
    damaged.write_bytes(bytes(content))
    with pytest.raises(RunFault, match="does not match its hash"):
        export_from_checkpoint(trained.run, 8)
    fallback = export_from_checkpoint(trained.run, form="model")
    assert json.loads((fallback.path / "manifest.json").read_text())["step"] == 3
    with pytest.raises(InputError, match="no run"):
        export_from_checkpoint(RunDir(tmp_path / "nowhere"))


def test_with_early_stopping_the_best_checkpoint_is_exported(tiny_llama, tmp_path):
    recipe = {"evaluation": {"every_steps": 1, "early_stopping": {"patience": 1}}}
    trained = Trained(tiny_llama, tmp_path / "run", LORA, recipe=recipe).train()
    trained.save(4, best_step=4)
    trained.train().save(7, best_step=4)
    assert json.loads((export_from_checkpoint(trained.run).path / "manifest.json").read_text())["step"] == 4


def test_the_gate_uses_built_in_text_without_prepared_rows(tiny_llama, tmp_path):
    trained = Trained(tiny_llama, tmp_path / "run", LORA).train()
    trained.save(6)
    shutil.rmtree(tmp_path / "run" / "index")
    assert export_from_checkpoint(trained.run).gate["row_source"] == "built-in text"


def test_a_changed_base_model_is_rejected(tiny_llama, tmp_path):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    trained = Trained(base, tmp_path / "run", LORA).train()
    trained.save(6)
    edit_tensors(base, scale_one)
    with pytest.raises(InputError, match="has changed since the run was trained"):
        export_from_checkpoint(trained.run)
    assert not trained.run.export.exists()


def test_a_plan_with_another_method_is_rejected(tiny_llama, tmp_path):
    trained = Trained(tiny_llama, tmp_path / "run", LORA).train()
    trained.save(6)
    other = trained.plan.recipe.model_copy(update={"method": Lora(kind="lora", lora_rank=8)})
    trained.plan.model_copy(update={"recipe": other}).write(trained.run.plan)
    with pytest.raises(RunFault, match=r"has shape \(4, 64\), expected \(8, 64\)"):
        export_from_checkpoint(trained.run)
    other = trained.plan.recipe.model_copy(update={"method": Full(kind="full")})
    trained.plan.model_copy(update={"recipe": other}).write(trained.run.plan)
    with pytest.raises(RunFault, match="do not match the plan"):
        export_from_checkpoint(trained.run)


@pytest.mark.weights
@pytest.mark.parametrize("form", ["adapter", "model"])
def test_smollm2_exports_give_the_logits_of_the_live_model(form, smollm2, tmp_path):
    trained = Trained(smollm2, tmp_path / "run", LORA).train(steps=2, learning_rate=1e-3)
    live = trained.logits()
    result = trained.export(form=form)
    assert result.gate["passed"]
    assert result.gate["max_logit_difference"] < 1e-3
    loader = AutoPeftModelForCausalLM if form == "adapter" else AutoModelForCausalLM
    plain = loader.from_pretrained(result.path, dtype=torch.float32)
    assert largest_difference(plain_logits(trained, plain), live) < 1e-3
    assert np.isfinite(result.gate["largest_logit"])
