"""Every shipped recipe can be loaded and planned, with rows of its task and a tiny model in place of the real one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_tokenizer
from tunesmith.configs.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted([*(ROOT / "configs" / "recipes").glob("*.yaml"), *(ROOT / "demo").glob("*.yaml")])

# The recipe of the project's first issue, which must stay valid unchanged.
FIRST = """\
name: support-bot
model: {base: models/smollm2-135m}          # a Hugging Face directory, a hub id, or a GGUF file
task: chat
method: {kind: lora, lora_rank: 16, lora_alpha: 32, target_modules: all-linear}
data: {train: [support.jsonl], validation: 0.1, max_seq_len: 512, too_long: error, packing: true, max_rejects: 0}
optimization: {learning_rate: 2.0e-4, schedule: cosine, warmup_fraction: 0.03, weight_decay: 0.0, max_grad_norm: 1.0, global_batch_size: 8, epochs: 1}
checkpoint: {every_steps: 20, keep_last: 3}
evaluation: {every_steps: 20}
seed: 7
"""  # noqa: E501


def row(task: str, number: int) -> dict:
    question, answer = f"What about case {number}?", f"Case {number} was closed today. " * (1 + number % 3)
    return {
        "chat": {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]},
        "completion": {"prompt": question, "completion": f" {answer}"},
        "text": {"text": f"{question} {answer}"},
        "classification": {"text": f"{question} {answer}", "label": ("discharged", "readmitted", "hockey")[number % 2]},
        "seq2seq": {"source": question, "target": answer},
        "preference": {"prompt": question, "chosen": answer, "rejected": "No."},
        "kto": {"prompt": question, "completion": answer, "label": number % 3 > 0},
    }[task]


def write_rows(directory: Path, pattern: str, task: str, first: int = 0) -> None:
    """Write forty rows to the path that the recipe names; ten files for a pattern of text files. A CSV file has the
    columns question and answer."""
    paths = [directory / pattern.replace("*", str(number)) for number in range(10 if "*" in pattern else 1)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            path.write_text("question,answer\n" + "".join(f"q {n},answer {n}\n" for n in range(first, first + 40)))
            continue
        lines = [json.dumps(row(task, number)) for number in range(first, first + 40)]
        plain = path.suffix == ".txt"
        path.write_text(f"{path.name} speaks.\n" * 40 if plain else "\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory) -> Path:
    from transformers import T5Config, T5ForConditionalGeneration

    directory = tmp_path_factory.mktemp("plan-t5")
    make_tokenizer(directory)
    shape = T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(shape).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_can_be_planned(path, tmp_path, tiny_llama, tiny_t5):
    recipe = load_recipe(path)
    for number, pattern in enumerate(recipe.data.training_paths):
        write_rows(tmp_path, pattern, recipe.task, first=1000 * number)
    for pattern in recipe.data.validation_paths:
        write_rows(tmp_path, pattern, recipe.task, first=100)
    copy = shutil.copy(path, tmp_path / path.name)
    command = [sys.executable, "-m", "tunesmith.cli.main", "plan", str(copy), "--json"]
    command += [
        "--set",
        f"model.base={tiny_t5 if recipe.task == 'seq2seq' else tiny_llama}",
        "--set",
        "model.revision=null",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert plan["recipe"]["method"] == recipe.method.model_dump(mode="json")
    assert plan["batch"]["total_steps"] >= 1
    assert plan["data"]["train"]["supervised_tokens"] > 0
    assert plan["data"]["validation"]["num_rows"] > 0


def test_recipe_names_are_unique():
    names = [load_recipe(path).name for path in RECIPES]
    assert len(names) >= 6
    assert len(set(names)) == len(names)


def test_the_shipped_recipes_cover_every_task():
    recipes = [load_recipe(path) for path in RECIPES]
    assert {recipe.method.kind for recipe in recipes} == {"full", "last_layers", "lora"}
    assert {recipe.task for recipe in recipes} == {
        *("chat", "completion", "text", "classification", "seq2seq", "preference", "kto"),
    }


def test_the_first_recipe_is_still_valid(tmp_path):
    written = tmp_path / "recipe.yaml"
    written.write_text(FIRST)
    assert load_recipe(written) == load_recipe(ROOT / "configs" / "recipes" / "support-bot.yaml")
