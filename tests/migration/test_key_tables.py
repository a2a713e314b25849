"""Every key of the tools' schemas is mapped, without effect for a reason, or refused with a remedy; none is dropped.

schemas/ has the key names as the tools define them, extracted from their source at the versions named there.
"""

import ast
import importlib.util
from pathlib import Path

import pytest
import yaml

from tunesmith.configs.allowed import all_keys
from tunesmith.configs.migration.key_table import TOOLS, key_table
from tunesmith.configs.migration.migrate import migrate
from tunesmith.configs.migration.rows import TURN_ROLES
from tunesmith.data.rows.shapes.turns import ROLES
from tunesmith.errors import InputError

SCHEMAS = Path(__file__).parent / "schemas"
HERE = Path(__file__).parent


def schema(name: str) -> set[str]:
    lines = (SCHEMAS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


@pytest.mark.parametrize("tool", TOOLS)
def test_every_key_of_the_schema_is_in_the_table_and_no_other(tool):
    table = key_table(tool)
    assert len(table.keys) > 300
    assert table.keys.keys() == schema(tool)
    assert table.entries.keys() == schema(f"{tool}-datasets")
    assert all("commit" in origin or "transformers" in origin for origin in table.read_from)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_key_has_what_its_group_needs(tool):
    table = key_table(tool)
    recipe_keys = {full for names in all_keys().values() for full in names}
    for key, fact in [*table.keys.items(), *table.entries.items()]:
        if fact.group == "mapped":
            assert {name.strip() for name in fact.recipe.split(",")} <= recipe_keys, key
        else:
            assert len(fact.reason) > 15, key
            assert fact.remedy or fact.group == "no_effect", key


def dataclass_fields(package: str, file: str, *classes: str) -> set[str]:
    """Fields of classes in an installed package, read without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))
    bodies = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name in classes]
    assert len(bodies) == len(classes)
    targets = [item.target for body in bodies for item in body if isinstance(item, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name) and not target.id.startswith("_")}


@pytest.mark.parametrize(
    ("tool", "package", "file", "classes"),
    [
        ("llama-factory", "transformers", "training_args.py", ("TrainingArguments",)),
        ("trl", "transformers", "training_args.py", ("TrainingArguments",)),
        ("trl", "trl", "trainer/sft_config.py", ("SFTConfig",)),
        ("trl", "trl", "trainer/dpo_config.py", ("DPOConfig",)),
        ("trl", "trl", "trainer/kto_config.py", ("KTOConfig",)),
        ("trl", "trl", "trainer/model_config.py", ("ModelConfig",)),
        ("trl", "trl", "scripts/utils.py", ("ScriptArguments", "DatasetMixtureConfig")),
    ],
)
def test_the_installed_packages_have_no_key_that_the_table_lacks(tool, package, file, classes):
    fields = dataclass_fields(package, file, *classes)
    assert len(fields) > 5 or "ScriptArguments" in classes
    assert fields - key_table(tool).keys.keys() == set()


BASES = {
    "llama-factory": {
        "model_name_or_path": "some/model",
        "stage": "sft",
        "dataset": "faq",
        "dataset_dir": {"faq": {"file_name": "a.jsonl"}, "other": {"file_name": "b.jsonl"}},
    },
    "axolotl": {
        "base_model": "some/model",
        "datasets": [{"path": "a.jsonl", "type": "alpaca"}],
        "micro_batch_size": 2,
        "learning_rate": 1e-4,
    },
    "trl": {"model_name_or_path": "some/model", "dataset_name": "a.jsonl", "max_length": 512},
}
LORA_AXOLOTL = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
PAIRS = [{"path": "a.jsonl", "type": "chatml.intel"}]
# A value for each mapped key that shows in the recipe, with the keys that it needs next to it.
TRAINING = {
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 5,
    "num_train_epochs": 2,
    "max_steps": 70,
    "learning_rate": 3e-5,
    "lr_scheduler_type": "constant_with_warmup",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": {"warmup_steps": 7, "max_steps": 70},
    "warmup_ratio": 0.07,
    "optim": "paged_adamw_8bit",
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 0.5,
    "label_smoothing_factor": 0.1,
    "neftune_noise_alpha": 5,
    "gradient_checkpointing": False,
    "activation_checkpointing": False,
    "bf16": True,
    "fp16": True,
    "eval_strategy": {"eval_strategy": "steps", "eval_steps": 9, "!validation": 0.1},
    "evaluation_strategy": {"evaluation_strategy": "steps", "eval_steps": 9, "!validation": 0.1},
    "eval_steps": {"eval_strategy": "steps", "eval_steps": 9, "!validation": 0.1},
    "save_strategy": "epoch",
    "save_steps": 11,
    "save_total_limit": 2,
    "seed": 5,
    "full_determinism": True,
    "use_cpu": True,
    "no_cuda": True,
    "deepspeed": {"deepspeed": {"zero_optimization": {"stage": 2}}},
    "fsdp": "full_shard offload",
    "fsdp_config": {"fsdp_config": {"reshard_after_forward": False}},
    "output_dir": "saves/one",
}
EXAMPLES = {
    "llama-factory": {
        **TRAINING,
        "model_name_or_path": "a/b",
        "model_revision": "abc",
        "adapter_name_or_path": "adapters/one",
        "stage": {"stage": "kto"},
        "finetuning_type": "full",
        "pref_loss": {"stage": "dpo", "dataset": "pairs", "pref_loss": "ipo"},
        "pref_beta": {"stage": "kto", "pref_beta": 0.3},
        "kto_chosen_weight": {"stage": "kto", "kto_chosen_weight": 0.7},
        "kto_rejected_weight": {"stage": "kto", "kto_rejected_weight": 0.7},
        "dataset": "other",
        "eval_dataset": "other",
        "dataset_dir": {"dataset_dir": {"faq": {"hf_hub_url": "some/faq"}}},
        "mix_strategy": {"dataset": "faq,other", "mix_strategy": "interleave_under"},
        "interleave_probs": {
            "dataset": "faq,other",
            "mix_strategy": "interleave_over",
            "interleave_probs": "0.7,0.3",
        },
        "val_size": 0.2,
        "cutoff_len": 99,
        "packing": True,
        "neat_packing": True,
        "split_special_tokens": False,
        "freeze_trainable_layers": {"finetuning_type": "freeze", "freeze_trainable_layers": 3},
        "freeze_trainable_modules": {"finetuning_type": "freeze", "freeze_trainable_modules": "all"},
        "lora_rank": 4,
        "lora_alpha": 5,
        "lora_dropout": 0.2,
        "lora_target": "q_proj,v_proj",
        "use_rslora": True,
        "use_dora": True,
        "quantization_bit": 4,
        "quantization_method": {"quantization_bit": 4, "quantization_method": "bnb"},
        "quantization_type": {"quantization_bit": 4, "quantization_type": "nf4"},
        "double_quantization": {"quantization_bit": 4, "double_quantization": False},
        "disable_gradient_checkpointing": True,
        "pure_bf16": True,
        "early_stopping_steps": 3,
        "ray_num_workers": 2,
    },
    "trl": {
        **TRAINING,
        "model_name_or_path": "a/b",
        "model_revision": "abc",
        "chat_template_path": str(HERE / "test_key_tables.py"),
        "use_peft": True,
        "lora_r": {"use_peft": True, "lora_r": 4},
        "lora_alpha": {"use_peft": True, "lora_alpha": 4},
        "lora_dropout": {"use_peft": True, "lora_dropout": 0.2},
        "lora_target_modules": {"use_peft": True, "lora_target_modules": ["k_proj"]},
        "use_rslora": {"use_peft": True, "use_rslora": True},
        "use_dora": {"use_peft": True, "use_dora": True},
        "load_in_4bit": {"use_peft": True, "load_in_4bit": True},
        "load_in_8bit": None,
        "bnb_4bit_quant_type": {"use_peft": True, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "use_bnb_nested_quant": {"use_peft": True, "load_in_4bit": True, "use_bnb_nested_quant": True},
        "dataset_name": "b.jsonl",
        "dataset_config": None,
        "dataset_train_split": None,
        "dataset_test_split": None,
        "datasets": {"datasets": [{"path": "json", "data_files": ["a.jsonl", "b.jsonl"]}]},
        "test_split_size": 0.1,
        "dataset_text_field": "content",
        "completion_only_loss": True,
        "assistant_only_loss": True,
        "max_length": 99,
        "max_seq_length": {"max_length": None, "max_seq_length": 99},
        "truncation_mode": "keep_start",
        "packing": True,
        "packing_strategy": {"packing": True, "packing_strategy": "wrapped"},
        "beta": 0.3,
        "loss_type": {"loss_type": "ipo"},
        "desirable_weight": 0.7,
        "undesirable_weight": 0.7,
        "activation_offloading": True,
    },
    "axolotl": {
        "base_model": "a/b",
        "revision_of_model": "abc",
        "model_revision": "abc",
        "chat_template": None,
        "chat_template_jinja": str(HERE / "test_key_tables.py"),
        "datasets": [{"path": "b.jsonl", "type": "completion", "field": "body"}],
        "test_datasets": [{"path": "b.jsonl", "type": "alpaca"}],
        "pretraining_dataset": [{"path": "b.jsonl", "text_column": "body"}],
        "val_set_size": 0.1,
        "sequence_len": 99,
        "excess_length_strategy": "raise",
        "sample_packing": True,
        "dataset_exact_deduplication": True,
        "train_on_inputs": False,
        "adapter": {**LORA_AXOLOTL, "adapter": "qlora"},
        "load_in_4bit": {**LORA_AXOLOTL, "load_in_4bit": True},
        "load_in_8bit": None,
        "lora_r": LORA_AXOLOTL,
        "lora_alpha": LORA_AXOLOTL,
        "lora_dropout": {**LORA_AXOLOTL, "lora_dropout": 0.2},
        "lora_target_modules": {**LORA_AXOLOTL, "lora_target_linear": None, "lora_target_modules": ["q_proj"]},
        "lora_target_linear": LORA_AXOLOTL,
        "lora_model_dir": {**LORA_AXOLOTL, "lora_model_dir": "adapters/one"},
        "peft_use_dora": {**LORA_AXOLOTL, "peft_use_dora": True},
        "peft_use_rslora": {**LORA_AXOLOTL, "peft_use_rslora": True},
        "rl": {"rl": "ipo", "datasets": PAIRS},
        "rl_beta": {"rl": "dpo", "datasets": PAIRS, "rl_beta": 0.3},
        "dpo_beta": {"rl": "dpo", "datasets": PAIRS, "dpo_beta": 0.3},
        "orpo_alpha": {"rl": "orpo", "datasets": PAIRS, "orpo_alpha": 0.3},
        "dpo_loss_type": {"rl": "dpo", "datasets": PAIRS, "dpo_loss_type": ["ipo"]},
        "kto_desirable_weight": {
            "rl": "kto",
            "datasets": [{"path": "a.jsonl", "type": "chatml.ultra"}],
            "kto_desirable_weight": 0.7,
        },
        "kto_undesirable_weight": {
            "rl": "kto",
            "datasets": [{"path": "a.jsonl", "type": "chatml.ultra"}],
            "kto_undesirable_weight": 0.7,
        },
        "micro_batch_size": 3,
        "gradient_accumulation_steps": 5,
        "batch_size": 8,
        "ray_num_workers": {"use_ray": True, "ray_num_workers": 3},
        "use_ray": {"use_ray": True, "ray_num_workers": 3},
        "num_epochs": 2,
        "max_steps": 70,
        "learning_rate": 3e-5,
        "optimizer": "adamw_bnb_8bit",
        "lr_scheduler": "linear",
        "lr_scheduler_kwargs": {"lr_scheduler_kwargs": {"min_lr": 1e-5}},
        "cosine_min_lr_ratio": 0.1,
        "warmup_ratio": 0.07,
        "warmup_steps": {"warmup_steps": 7, "max_steps": 70},
        "weight_decay": 0.1,
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-6,
        "max_grad_norm": 0.5,
        "neftune_noise_alpha": 5,
        "noisy_embedding_alpha": 5,
        "gradient_checkpointing": "offload",
        "activation_offloading": True,
        "bf16": True,
        "bfloat16": True,
        "fp16": True,
        "float16": True,
        "float32": True,
        "eval_strategy": {"eval_strategy": "steps", "eval_steps": 9, "val_set_size": 0.1},
        "evaluation_strategy": {"evaluation_strategy": "steps", "eval_steps": 9, "val_set_size": 0.1},
        "eval_steps": {"eval_steps": 9, "val_set_size": 0.1},
        "evals_per_epoch": None,
        "early_stopping_patience": 3,
        "save_strategy": "epoch",
        "save_steps": 11,
        "saves_per_epoch": 1,
        "save_total_limit": 2,
        "seed": 5,
        "deepspeed": {"deepspeed": {"zero_optimization": {"stage": 2}}},
        "fsdp": ["full_shard", "auto_wrap"],
        "fsdp_config": {"fsdp_config": {"offload_params": True}},
        "output_dir": "outputs/one",
    },
}
VALIDATION = {"llama-factory": "val_size", "trl": "test_split_size"}
DEFAULTS = {"truncation_mode", "train_on_inputs", "saves_per_epoch", "assistant_only_loss"}
"""Keys with only one value that has an equivalent, the one that applies without the key."""
CHECKED_ONLY = {
    "llama-factory": set(),
    "trl": {"load_in_8bit", "dataset_config", "dataset_train_split", "dataset_test_split"},
    "axolotl": {"chat_template", "load_in_8bit", "evals_per_epoch"},
}
"""Keys that decide how others are converted, or that are listed where a recipe has no equal value."""


def configuration(tool: str, key: str, value: object) -> dict:
    extra = dict(value) if isinstance(value, dict) and key in value else {key: value}
    if "!validation" in extra:
        extra[VALIDATION[tool]] = extra.pop("!validation")
    values = {**BASES[tool], **extra}
    if extra.get("dataset") == "pairs":
        values["dataset_dir"] = {"pairs": {"file_name": "a.jsonl", "ranking": True}}
    return values


def test_every_mapped_key_has_an_example():
    for tool in TOOLS:
        mapped = {key for key, fact in key_table(tool).keys.items() if fact.group == "mapped"}
        assert mapped == EXAMPLES[tool].keys()


@pytest.mark.parametrize(
    ("tool", "key"),
    [(tool, key) for tool in TOOLS for key in EXAMPLES[tool] if key not in CHECKED_ONLY[tool]],
)
def test_a_mapped_key_changes_the_recipe(tool, key, tmp_path):
    path = tmp_path / "source.yaml"
    path.write_text(yaml.safe_dump(configuration(tool, key, EXAMPLES[tool][key])), encoding="utf-8")
    result = migrate(path, tool=tool, recipe_dir=tmp_path)
    carried = {name for name, setting in result.settings.items() if key in setting.keys}
    expected = {name.strip() for name in key_table(tool).keys[key].recipe.split(",")}
    assert carried & expected
    path.write_text(yaml.safe_dump(BASES[tool]), encoding="utf-8")
    if key not in DEFAULTS:
        assert migrate(path, tool=tool, recipe_dir=tmp_path).recipe != result.recipe


@pytest.mark.parametrize("tool", TOOLS)
def test_no_key_of_the_schema_can_be_dropped_silently(tool, tmp_path):
    """A file with every key at once: each is carried over, listed, or in an error."""
    table = key_table(tool).keys
    values = {key: "something" for key in table if key not in BASES[tool]} | BASES[tool]
    mapped = {key for key, fact in table.items() if fact.group == "mapped"}
    path = tmp_path / "source.yaml"
    ignored = {key: value for key, value in values.items() if table[key].group == "no_effect"}
    path.write_text(yaml.safe_dump({**BASES[tool], **ignored}), encoding="utf-8")
    listed = {entry.key for entry in migrate(path, tool=tool, recipe_dir=tmp_path).not_carried}
    assert ignored.keys() <= listed
    for key in values.keys() - mapped - ignored.keys():
        path.write_text(yaml.safe_dump({**BASES[tool], key: "something"}), encoding="utf-8")
        with pytest.raises(InputError) as caught:
            migrate(path, tool=tool, recipe_dir=tmp_path)
        assert f"key {key}" in str(caught.value)
        assert table[key].remedy in str(caught.value)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("value", ["something", 7, [1], {"a": 1}], ids=["text", "number", "list", "section"])
def test_a_value_of_another_type_is_converted_or_an_error(tool, value, tmp_path):
    path = tmp_path / "source.yaml"
    for key, example in EXAMPLES[tool].items():
        values = {**configuration(tool, key, example), key: value}
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        try:
            migrate(path, tool=tool, recipe_dir=tmp_path)
        except InputError as error:
            assert str(path) in str(error), key  # noqa: PT017


ENTRY = {"path": "a.jsonl", "type": "chat_template"}


@pytest.mark.parametrize("value", ["something", 7, [1], {"a": 1}], ids=["text", "number", "list", "section"])
def test_a_value_of_another_type_in_a_data_set_is_converted_or_an_error(value, tmp_path):
    path = tmp_path / "source.yaml"
    info = {"file_name": "a.jsonl"}
    sources = [
        *(("axolotl", "datasets", [{**ENTRY, key: value}], key) for key in key_table("axolotl").entries),
        *(("trl", "datasets", [{"path": "a.jsonl", key: value}], key) for key in key_table("trl").entries),
        *(
            ("llama-factory", "dataset_dir", {"faq": {**info, key: value}}, key)
            for key in key_table("llama-factory").entries
            if "." not in key
        ),
    ]
    for tool, source_key, data, key in sources:
        path.write_text(yaml.safe_dump({**BASES[tool], source_key: data}), encoding="utf-8")
        try:
            migrate(path, tool=tool, recipe_dir=tmp_path)
        except InputError as error:
            assert str(path) in str(error), key  # noqa: PT017


def test_the_roles_of_turns_are_those_that_rows_are_read_with():
    known = {name for names in TURN_ROLES.values() for name in names}
    assert known == set(ROLES)
