"""Public configurations of LLaMA-Factory and Axolotl become recipes that are valid and can be planned.

The fixtures were rewritten by hand; their first line names the configuration that each stands for.
"""

import json
from pathlib import Path

import pytest

from tunesmith.configs.load import load_recipe
from tunesmith.configs.migration.migrate import migrate
from tunesmith.errors import InputError
from tunesmith.launcher.backends.local import Local
from tunesmith.launcher.planning.prepare_run import make_whole_plan, read_request

HERE = Path(__file__).parent
EXAMPLES = sorted([*(HERE / "llama_factory").glob("*.yaml"), *(HERE / "axolotl").glob("*.yaml")])
QUESTION, ANSWER = "What about case {}?", "Case {} was closed today."
NEEDS_GPU = {"full_8b": "paged"}
"""Configurations that cannot be planned without a GPU, with a word of the reason."""


def message(role: str, text: str) -> dict:
    return {"role": role, "content": text}


def alpaca(question: str, answer: str, number: int) -> dict:
    return {"instruction": question, "input": "", "output": answer}


def turns(question: str, answer: str, number: int) -> dict:
    pair = {"chosen": {"from": "gpt", "value": answer}, "rejected": {"from": "gpt", "value": "No."}}
    return {"conversations": [{"from": "human", "value": question}], **pair}


def rated_messages(question: str, answer: str, number: int) -> dict:
    return {"messages": [message("user", question), message("assistant", answer)], "label": number % 3 > 0}


def text(question: str, answer: str, number: int) -> dict:
    return {"text": f"{question} {answer}"}


def messages(question: str, answer: str, number: int) -> dict:
    return {"messages": [message("user", question), message("assistant", answer)]}


def paired_messages(question: str, answer: str, number: int) -> dict:
    pair = {"chosen": message("assistant", answer), "rejected": message("assistant", "No.")}
    return {"conversation": [message("user", question)], **pair}


def whole_conversations(question: str, answer: str, number: int) -> dict:
    return {
        "chosen": [message("user", question), message("assistant", answer)],
        "rejected": [message("user", question), message("assistant", "No.")],
    }


def rated(question: str, answer: str, number: int) -> dict:
    return {"prompt": question, "completion": answer, "label": number % 3 > 0}


ROWS = {
    "lora_dpo": turns,
    "lora_kto": rated_messages,
    "lora_pretrain": text,
    "pretrain": text,
    "instruct_lora_8b": messages,
    "dpo_lora_8b": paired_messages,
    "dpo_full": paired_messages,
    "kto_qlora_1b": rated,
    "orpo_qlora": whole_conversations,
}
"""The form of the rows that a configuration describes; Alpaca's for all others."""


def write_rows(path: Path, name: str) -> None:
    make = ROWS.get(name, alpaca)
    rows = [make(QUESTION.format(number), ANSWER.format(number), number) for number in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def migrated(path: Path, directory: Path) -> Path:
    result = migrate(path, recipe_dir=directory)
    out = directory / "recipe.yaml"
    out.write_text(result.text, encoding="utf-8")
    assert load_recipe(out) == result.recipe
    return out


def test_there_are_ten_of_each_and_each_names_its_source():
    assert [sum(path.parent.name == tool for path in EXAMPLES) for tool in ("llama_factory", "axolotl")] == [10, 10]
    first = [path.read_text(encoding="utf-8").splitlines()[0] for path in EXAMPLES]
    assert all("stands for" in line and "examples/" in line and "commit" in line for line in first)
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_public_configuration_can_be_planned(path, tmp_path, tiny_llama):
    recipe = migrated(path, tmp_path)
    write_rows(tmp_path / "rows.jsonl", path.stem)
    overrides = [f"model.base={tiny_llama}", "data.train=[rows.jsonl]", "data.max_seq_len=256"]
    overrides += ["resources.workers=1"] if load_recipe(recipe).resources.workers else []
    if path.stem in NEEDS_GPU:
        with pytest.raises(InputError, match=NEEDS_GPU[path.stem]):
            make_whole_plan(read_request(recipe, overrides), Local(), None)
        overrides.append("optimization.optimizer=adamw_8bit")
    plan = make_whole_plan(read_request(recipe, overrides), Local(), None)
    expected = load_recipe(recipe)
    assert plan.recipe.method == expected.method
    assert plan.recipe.task == expected.task
    assert plan.data.num_rejected == 0
    assert plan.data.train.num_rows + (plan.data.validation.num_rows if plan.data.validation else 0) == 40
    assert plan.data.train.supervised_tokens > 0
    assert plan.batch.total_steps >= 1


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_key_of_a_public_configuration_is_accounted_for(path, tmp_path):
    result = migrate(path, recipe_dir=tmp_path)
    carried = {key for setting in result.settings.values() for key in setting.keys}
    listed = carried | {entry.key for entry in result.not_carried} | set(result.empty)
    lines = path.read_text(encoding="utf-8").splitlines()
    keys = [line.partition(":")[0] for line in lines if line[:1].isalpha()]
    assert len(keys) > 20
    for key in keys:
        assert key in listed, key
        assert key in result.text


def values(name: str, tmp_path: Path) -> dict:
    (path,) = [path for path in EXAMPLES if path.stem == name]
    return {key: setting.value for key, setting in migrate(path, recipe_dir=tmp_path).settings.items()}


def test_the_values_of_a_llama_factory_example(tmp_path):
    converted = values("lora_sft_zero3", tmp_path)
    assert converted["model.base"] == "Qwen/Qwen3-4B-Instruct-2507"
    assert (converted["task"], converted["method.kind"]) == ("chat", "lora")
    assert (converted["method.lora_rank"], converted["method.lora_alpha"]) == (
        8,
        16,
    )  # twice the rank, LLaMA-Factory's default
    assert converted["method.target_modules"] == "all-linear"
    assert [Path(name).name for name in converted["data.train"]] == ["identity.json", "alpaca_en_demo.json"]
    assert (converted["data.max_seq_len"], converted["data.too_long"], converted["data.packing"]) == (
        2048,
        "truncate",
        False,
    )
    assert (converted["optimization.global_batch_size"], converted["optimization.micro_batch_size"]) == (2, 1)
    assert (converted["optimization.learning_rate"], converted["optimization.warmup_fraction"]) == (1e-4, 0.1)
    assert converted["optimization.epochs"] == 3
    assert converted["parallelism.zero_stage"] == 3
    assert (converted["checkpoint.every_steps"], converted["precision"], converted["seed"]) == (500, "bf16", 42)
    assert converted["name"] == "qwen3-4b-lora-sft"


def test_the_values_of_an_axolotl_example(tmp_path):
    converted = values("lora_1b_ray", tmp_path)
    assert converted["data.train"] == ["hf://datasets/teknium/GPT4-LLM-Cleaned"]
    assert (converted["task"], converted["data.too_long"], converted["data.packing"]) == ("completion", "drop", True)
    assert (converted["optimization.global_batch_size"], converted["resources.workers"]) == (16, 4)  # 2 x 2 x 4 workers
    assert (converted["optimization.optimizer"], converted["checkpoint.every_steps"]) == ("adamw_8bit", None)
    assert converted["method.target_modules"][0] == "gate_proj"
    assert (converted["method.lora_alpha"], converted["method.lora_dropout"]) == (32, 0.05)
    assert values("orpo_qlora", tmp_path)["preference.loss"] == "orpo"
    assert values("kto_qlora_1b", tmp_path)["kto.desirable_weight"] == 0.2
    steps = values("pretrain", tmp_path)
    assert (steps["optimization.max_steps"], steps["optimization.epochs"], steps["data.too_long"]) == (
        200,
        200,
        "split",
    )
