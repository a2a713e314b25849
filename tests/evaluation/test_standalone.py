"""`evaluate` on model directories, adapters and runs equals transformers on the same rows."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.configs.plan import BatchFacts, ComputeFacts, Plan
from tunesmith.configs.recipe import Recipe
from tunesmith.data.index.prepare import prepare
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError, RunFault
from tunesmith.evaluation.few_shot import choose_examples
from tunesmith.evaluation.results import read_scores
from tunesmith.evaluation.standalone import evaluate
from tunesmith.evaluation.standalone_result import EvaluationOptions
from tunesmith.inference.types import Sampling
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.base_model.facts import model_facts
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.parts import causal_lm
from tunesmith.rundir.commit import committed_directory
from tunesmith.rundir.paths import RunDir

METHOD = {"kind": "lora", "lora_rank": 4, "lora_alpha": 8}


def make_run(base: Path, root: Path, rows: Path, max_seq_len: int = 256, **data: Any) -> tuple[RunDir, Plan]:
    """A run as the launcher creates it before the first step, with real model and data facts. data: more keys."""
    recipe = Recipe.model_validate(
        {
            "name": "demo",
            "model": {"base": str(base)},
            "method": METHOD,
            "data": {"train": [str(rows)], "validation": 0.2, "max_seq_len": max_seq_len, **data},
        }
    )
    run = RunDir(root)
    run.create()
    plan = Plan(
        tunesmith_version="0",
        recipe=recipe,
        model=model_facts(base, str(base), recipe.method),
        data=prepare(recipe, Tokenizer.load(base), recipe_dir=root, run=run, workers=1),
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
            precision="fp32",
            gradient_checkpointing=False,
            world_size=1,
            threads_per_rank=1,
            memory_bytes=1,
            estimated_peak_bytes=1,
            checkpoint_bytes=1,
        ),
        choices=[],
    )
    plan.write(run.plan)
    return run, plan


def adapted(base: Path, scale: float):
    """The base model with a nonzero adapter."""
    model = load_model(base, dtype=torch.float32, attention=PACKED)
    model = apply_method(causal_lm(model), Recipe.model_validate(MINIMAL).method, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in trained_parameters(model).items():
            if "lora_B" in name:
                weight.normal_(0.0, scale, generator=generator)
    return model


MINIMAL = {"name": "m", "model": {"base": "b"}, "method": METHOD, "data": {"train": ["t"]}}


def save_checkpoint(run: RunDir, step: int, model) -> Path:
    """Write the checkpoint files that evaluation reads."""
    from safetensors.torch import save_file

    final = run.checkpoint(step)
    with committed_directory(final, 1, step=step) as directory:
        save_file(
            {n: w.detach().contiguous() for n, w in trained_parameters(model).items()}, directory / "model.safetensors"
        )
    return final


def by_hand(model, directory: Path, rows: list[dict]) -> tuple[float, int]:
    """Return the mean loss over the assistant's tokens and their number, with transformers' chat template."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    total, count = 0.0, 0
    for row in rows:
        start = len(
            tokenizer.apply_chat_template(
                row["messages"][:1], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )
        tokens = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)
        end = max(i for i, token in enumerate(tokens) if token == tokenizer.eos_token_id) + 1
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0].double()
        losses = torch.nn.functional.cross_entropy(logits[start - 1 : end - 1], torch.tensor(tokens[start:end]))
        total += float(losses) * (end - start)
        count += end - start
    return total / count, count


@pytest.fixture
def rows(chat_rows, write_jsonl) -> Path:
    return write_jsonl("held-out.jsonl", chat_rows[:12])


def test_model_directory_is_evaluated(tiny_llama, rows, chat_rows, tmp_path):
    result = evaluate(str(tiny_llama), [str(rows)], out=tmp_path / "out")
    loss, count = by_hand(AutoModelForCausalLM.from_pretrained(tiny_llama), tiny_llama, chat_rows[:12])
    assert result.metrics.loss == pytest.approx(loss, abs=1e-5)
    assert result.metrics.num_tokens == count
    assert result.metrics.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert (result.task, result.num_rows, result.metrics.num_examples) == ("chat", 12, 12)
    assert (result.baseline, result.comparison) == (None, None)
    scores = read_scores(tmp_path / "out" / "results.jsonl")
    assert scores.row.tolist() == list(range(12))
    assert math.fsum(scores.loss_sum) / count == pytest.approx(loss, abs=1e-5)


def test_adapter_is_compared_with_its_base(tiny_llama, rows, chat_rows, tmp_path):
    model = adapted(tiny_llama, 0.3)
    model.save_pretrained(str(tmp_path / "adapter"))  # as saved by peft: without a tokenizer
    result = evaluate(str(tmp_path / "adapter"), [str(rows)], baseline=str(tiny_llama))
    base_loss, _ = by_hand(AutoModelForCausalLM.from_pretrained(tiny_llama), tiny_llama, chat_rows[:12])
    causal_lm(model).set_attn_implementation("sdpa")
    loss, _ = by_hand(model, tiny_llama, chat_rows[:12])
    assert abs(loss - base_loss) > 0.1
    assert result.metrics.loss == pytest.approx(loss, abs=1e-5)
    assert result.baseline_metrics.loss == pytest.approx(base_loss, abs=1e-5)
    assert result.comparison.loss.value == pytest.approx(loss - base_loss, abs=1e-5)
    assert result.comparison.loss.low < loss - base_loss < result.comparison.loss.high
    same = evaluate(str(tiny_llama), [str(rows)], baseline=str(tiny_llama)).comparison.loss
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert not same.is_clear


def test_run_is_evaluated_by_its_export_or_else_its_newest_valid_checkpoint(
    tiny_llama, rows, write_jsonl, chat_rows, tmp_path
):
    run, _ = make_run(tiny_llama, tmp_path / "run", write_jsonl("train.jsonl", chat_rows))
    with pytest.raises(InputError, match="no valid checkpoint"):
        evaluate(str(run.root), [str(rows)])
    early, late = adapted(tiny_llama, 0.1), adapted(tiny_llama, 0.3)
    save_checkpoint(run, 3, early)
    newest = save_checkpoint(run, 10, late)
    losses = []
    for model in (early, late):
        causal_lm(model).set_attn_implementation("sdpa")
        losses.append(by_hand(model, tiny_llama, chat_rows[:12])[0])
    assert abs(losses[0] - losses[1]) > 0.05

    result = evaluate(str(run.root), [str(rows)], baseline=str(tiny_llama))
    assert "step 10" in result.model
    assert result.metrics.loss == pytest.approx(losses[1], abs=1e-5)

    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (newest / "model.safetensors").write_bytes(bytes(content))
    result = evaluate(str(run.root), [str(rows)])
    assert "step 3" in result.model
    assert result.metrics.loss == pytest.approx(losses[0], abs=1e-5)
    assert newest.is_dir()  # evaluation is read-only

    with committed_directory(run.export, 0) as directory:
        late.save_pretrained(str(directory))
    result = evaluate(str(run.root), [str(rows)])
    assert "export" in result.model
    assert result.metrics.loss == pytest.approx(losses[1], abs=1e-5)
    (run.export / "adapter_config.json").write_text("{}")
    assert "step 3" in evaluate(str(run.root), [str(rows)]).model  # a damaged export is not used


def test_run_is_evaluated_with_the_settings_of_its_recipe(tiny_llama, write_jsonl, chat_rows, tmp_path):
    run, _ = make_run(tiny_llama, tmp_path / "run", write_jsonl("train.jsonl", chat_rows))
    save_checkpoint(run, 3, adapted(tiny_llama, 0.1))
    long = {"messages": [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "Yes."}]}
    rows = write_jsonl("long.jsonl", [long])
    with pytest.raises(InputError) as caught:
        evaluate(str(run.root), [str(rows)])
    assert "long.jsonl:1" in str(caught.value)
    assert evaluate(str(run.root), [str(rows)], max_seq_len=2048).metrics.num_examples == 1


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"text": "The Work is provided as is. " * 200}, "text"),
        ({"prompt": "The licence", "completion": " is free."}, "completion"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}, "chat"),
    ],
)
def test_task_is_inferred_from_the_rows(row, task, tiny_llama, write_jsonl):
    result = evaluate(str(tiny_llama), [str(write_jsonl("rows.jsonl", [row, row]))], max_seq_len=512)
    assert result.task == task
    assert result.num_rows == 2
    assert result.metrics.num_tokens > 2
    if task == "text":  # longer than the context: split into documents of one example
        assert result.metrics.num_examples == 2
        assert result.metrics.num_tokens > 2 * 512


def test_user_errors_are_input_errors(tiny_llama, rows, write_jsonl, tmp_path):
    for target, message in (
        (str(tmp_path), "neither a run nor a model"),
        ("./no/such/model", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(target, [str(rows)])
    with pytest.raises(InputError, match="no data found"):
        evaluate(str(tiny_llama), [str(tmp_path / "nothing.jsonl")])
    bad = write_jsonl("bad.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}, '{"messages": '])
    with pytest.raises(InputError) as caught:
        evaluate(str(tiny_llama), [str(bad)])
    assert "bad.jsonl:2" in str(caught.value)
    with pytest.raises(InputError, match="cannot be inferred"):
        evaluate(str(tiny_llama), [str(write_jsonl("odd.jsonl", [{"question": "?"}]))])


def test_baseline_with_a_different_vocabulary_is_rejected(tiny_llama, rows, tmp_path):
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 383, "content": "<|more|>"})
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="different vocabulary"):
        evaluate(str(tiny_llama), [str(rows)], baseline=str(other))


def test_data_without_supervised_tokens_is_an_error(tiny_llama, write_jsonl):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", "weight": 0}]
    rows = write_jsonl("untrained.jsonl", [{"messages": messages}])
    with pytest.raises((InputError, RunFault), match="supervised"):
        evaluate(str(tiny_llama), [str(rows)])


def test_answers_are_evaluated_and_compared_with_the_few_shot_baseline(
    tiny_llama, rows, write_jsonl, chat_rows, tmp_path
):
    run, plan = make_run(tiny_llama, tmp_path / "run", write_jsonl("train.jsonl", chat_rows[20:]))
    save_checkpoint(run, 3, adapted(tiny_llama, 0.3))
    options = EvaluationOptions(("generation", "json"), Sampling(max_new_tokens=8), few_shot=3)
    out = tmp_path / "out"
    result = evaluate(str(run.root), [str(rows)], evaluation=options, batch_size=5, out=out)
    assert list(result.candidates) == ["model", "baseline", "few_shot"]
    model, base, few = result.candidates.values()
    assert (few.shots, base.shots) == (3, 0)
    assert {
        "loss",
        "bits_per_byte",
        "token_f1",
        "rougeL",
        "bleu",
        "chrf",
        "distinct_2",
        "stop_rate",
        "valid_json",
    } <= set(model.metrics)
    assert set(few.model_minus_this) == set(model.metrics)
    assert base.model_minus_this["loss"] == result.comparison.loss
    assert len({model.loss.loss, base.loss.loss, few.loss.loss}) == 3
    assert few.loss.num_tokens == base.loss.num_tokens == model.loss.num_tokens
    assert "version" in result.signatures["bleu"]

    # Few-shot baseline: transformers logits over the tokens of the examples followed by those of the row.
    train = TokenIndex.open(Path(plan.data.train.index))
    examples = [train.document(n).tokens.tolist() for n in choose_examples(train, 3, 1500)]
    before = [token for tokens in examples for token in tokens]
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokens = tokenizer.apply_chat_template(chat_rows[0]["messages"], tokenize=True, return_dict=False)
    line = json.loads((out / "few_shot.jsonl").read_text().splitlines()[0])
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor([before + tokens])).logits[0].double()
    end = len(before) + len(tokens) - 1  # the newline after the turn is not supervised
    losses = torch.nn.functional.cross_entropy(
        logits[end - line["num_tokens"] - 1 : end - 1], torch.tensor(tokens[-1 - line["num_tokens"] : -1])
    )
    assert line["loss"] == pytest.approx(float(losses), abs=1e-5)

    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(12))
    assert {"id", "loss", "num_tokens", "output", "reference", "stopped"} <= set(lines[0])
    assert lines[0]["reference"] == chat_rows[0]["messages"][1]["content"]
    assert json.loads((out / "summary.json").read_text())["candidates"]["model"]["metrics"] == model.metrics
    again = evaluate(str(run.root), [str(rows)], evaluation=options, batch_size=5, out=out)
    assert again.as_json()["candidates"] == result.as_json()["candidates"]
    with pytest.raises(InputError, match="requires the training rows of a run"):
        evaluate(str(tiny_llama), [str(rows)], evaluation=EvaluationOptions(few_shot=2))
    with pytest.raises(InputError, match="unknown metric"):
        evaluate(str(tiny_llama), [str(rows)], evaluation=EvaluationOptions(("rogue",)))


@pytest.mark.weights
def test_real_weights(smollm2, rows, chat_rows):
    result = evaluate(str(smollm2), [str(rows)])
    loss, count = by_hand(AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32), smollm2, chat_rows[:12])
    assert result.metrics.num_tokens == count
    assert result.metrics.loss == pytest.approx(loss, abs=1e-5)


def test_the_column_names_of_a_run_are_not_used_for_another_task(tiny_llama, write_jsonl, tmp_path):
    rows = [{"question": f"Question {number}?", "answer": "Yes."} for number in range(8)]
    columns = {"prompt": "question", "completion": "answer"}
    run, _ = make_run(tiny_llama, tmp_path / "run", write_jsonl("train.jsonl", rows), columns=columns)
    save_checkpoint(run, 3, adapted(tiny_llama, 0.1))
    mapped = evaluate(str(run.root), [str(write_jsonl("mapped.jsonl", rows[:2]))], task="chat")
    texts = evaluate(str(run.root), [str(write_jsonl("texts.jsonl", [{"text": "Hello."}]))], task="text")
    assert (mapped.num_rows, texts.num_rows) == (2, 1)
