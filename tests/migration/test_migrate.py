"""What has no equivalent is an error with file, line, key and remedy; units and meanings are converted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tunesmith.configs.load import load_recipe
from tunesmith.configs.migration.migrate import Migration, migrate
from tunesmith.errors import InputError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LLAMA_FACTORY = (HERE / "llama_factory" / "lora_sft.yaml").read_text(encoding="utf-8")
AXOLOTL = (HERE / "axolotl" / "lora_1b.yaml").read_text(encoding="utf-8")
FAQ_COLUMNS = {"instruction": "question", "output": "answer"}
TRL = """\
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset_name: rows.jsonl
assistant_only_loss: true
use_peft: true
max_length: 512
learning_rate: 2.0e-5
packing: true
"""


@pytest.fixture
def convert(tmp_path):
    """convert(text, changed={...}, removed=[...], **options) -> Migration of the text with keys changed."""

    def run(text: str, changed: dict | None = None, removed: tuple[str, ...] = (), **options) -> Migration:
        values = {key: value for key, value in yaml.safe_load(text).items() if key not in removed}
        path = tmp_path / "source.yaml"
        values = {**values, **(changed or {})}
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        if "cutoff_len" in values and "dataset_dir" not in values:
            (tmp_path / "data").mkdir(exist_ok=True)
            info = (HERE / "llama_factory" / "data" / "dataset_info.json").read_text(encoding="utf-8")
            (tmp_path / "data" / "dataset_info.json").write_text(info, encoding="utf-8")
        return migrate(path, recipe_dir=tmp_path, **options)

    return run


@pytest.mark.parametrize(
    ("text", "changed", "named", "remedy"),
    [
        (LLAMA_FACTORY, {"stage": "ppo"}, "reinforcement learning", "dpo and kto"),
        (LLAMA_FACTORY, {"stage": "rm"}, "reward model", "dpo and kto"),
        (LLAMA_FACTORY, {"cutof_len": 2048}, "unknown key `cutof_len`", "did you mean `cutoff_len`?"),
        (LLAMA_FACTORY, {"dataset": "pictures"}, "images", "data set of texts"),
        (LLAMA_FACTORY, {"dataset": "identiti"}, "no data set identiti", "did you mean identity?"),
        (
            LLAMA_FACTORY,
            {"dataset": "identity,faq", "mix_strategy": "interleave_under", "interleave_probs": "0.7"},
            "no list of 2 probabilities",
            "one for each data set",
        ),
        (LLAMA_FACTORY, {"dataset": "identity,faq", "mix_strategy": "shuffle"}, "`mix_strategy: shuffle`", "concat"),
        (LLAMA_FACTORY, {"dataset": "dpo_en_demo"}, "has rankings", "use another"),
        (LLAMA_FACTORY, {"use_badam": True}, "`use_badam`", "finetuning_type: lora"),
        (LLAMA_FACTORY, {"train_on_prompt": True}, "only the assistant's messages", "remove it"),
        (LLAMA_FACTORY, {"optim": "adafactor"}, "`optim: adafactor`", "adamw_torch"),
        (LLAMA_FACTORY, {"num_train_epochs": 0.5}, "not a whole number", "max_steps"),
        (LLAMA_FACTORY, {"deepspeed": "no/such.json"}, "does not exist", "looked up in"),
        (LLAMA_FACTORY, {"quantization_bit": 2}, "quantization to 2 bits", "quantization_bit: 4"),
        (LLAMA_FACTORY, {"finetuning_type": "oft"}, "`finetuning_type: oft`", "full, freeze, lora"),
        (LLAMA_FACTORY, {"lora_rank": -1}, "`lora_rank` is -1", "at least 1"),
        (LLAMA_FACTORY, {"lora_dropout": 2}, "`lora_dropout: 2` is not valid", "correct the value"),
        (LLAMA_FACTORY, {"learning_rate": "fast"}, "`learning_rate: fast`", "correct the value"),
        (LLAMA_FACTORY, {"per_device_train_batch_size": "many"}, "'many'", "whole number"),
        (LLAMA_FACTORY, {"dataset_dir": "REMOTE:some/data"}, "not downloaded", "download dataset_info.json"),
        (AXOLOTL, {"rl": "grpo"}, "type: alpaca", "types with an equivalent are"),
        (AXOLOTL, {"reward_model": True}, "`reward_model`", "tasks of a recipe"),
        (AXOLOTL, {"unfrozen_parameters": ["lm_head"]}, "`unfrozen_parameters`", "last_layers"),
        (AXOLOTL, {"processor_type": "AutoProcessor"}, "multimodal", "text models"),
        (AXOLOTL, {"plugins": ["axolotl.integrations.spectrum.SpectrumPlugin"]}, "plugins", "remove it"),
        (AXOLOTL, {"sequence_length_": 5}, "unknown key", "did you mean `sequence_len"),
        (AXOLOTL, {"train_on_inputs": True}, "prompts are context", "set it to false"),
        (AXOLOTL, {"datasets": [{"path": "a/b", "type": "context_qa"}]}, "context_qa", "alpaca"),
        (AXOLOTL, {"datasets": [{"path": "a/b", "typ": "alpaca"}]}, "unknown key `datasets[0].typ`", "mean type?"),
        (
            AXOLOTL,
            {"datasets": [{"path": "a/b", "type": "chat_template", "roles": {"user": ["customer"]}}]},
            "role customer",
            "rename it",
        ),
        (AXOLOTL, {"datasets": [{"path": "json", "type": "alpaca"}]}, "none is given", "add data_files"),
        (TRL, {"datasets": [{"path": "csv"}]}, "none is given", "add data_files"),
        (AXOLOTL, {"datasets": [5]}, "`datasets[0]` is not a section", "path and type"),
        (TRL, {"datasets": "a/b"}, "not a list of sections", "a path for each"),
        (TRL, {"loss_type": "dft"}, "`loss_type: dft`", "nll"),
        (TRL, {"reward_weights": [1.0]}, "online reinforcement learning", "trl dpo"),
        (TRL, {"max_length": None}, "no limit", "longest row"),
        (TRL, {"truncation_mode": "keep_end"}, "keep_end", "keep_start"),
    ],
)
def test_what_has_no_equivalent_is_an_error_with_line_and_remedy(convert, text, changed, named, remedy, tmp_path):
    with pytest.raises(InputError) as caught:
        convert(text, changed)
    message = str(caught.value)
    assert named in message
    assert remedy in message
    assert str(tmp_path) in message


def test_all_errors_are_listed_at_once(convert, tmp_path):
    with pytest.raises(InputError) as caught:
        convert(TRL, {"loss_type": "dft", "packin": True, "sync_ref_model": True})
    message = str(caught.value)
    assert "the configuration has 3 problems" in message
    lines = [f"{tmp_path / 'source.yaml'}:{line}" for line in (8, 9, 10)]
    assert [line in message for line in lines] == [True, True, True]


@pytest.mark.parametrize(
    ("text", "changed", "options", "expected"),
    [
        (LLAMA_FACTORY, {}, {"gpus": 8}, {"optimization.global_batch_size": 64, "optimization.micro_batch_size": 1}),
        (LLAMA_FACTORY, {"warmup_steps": 0.05, "warmup_ratio": None}, {}, {"optimization.warmup_fraction": 0.05}),
        (LLAMA_FACTORY, {"max_grad_norm": 0}, {}, {"optimization.max_grad_norm": None}),
        (LLAMA_FACTORY, {"neat_packing": True}, {}, {"data.packing": True}),
        (LLAMA_FACTORY, {"lr_scheduler_type": "constant"}, {}, {"optimization.warmup_fraction": 0.0}),
        (LLAMA_FACTORY, {"lr_scheduler_type": "polynomial"}, {}, {"optimization.schedule": "linear"}),
        (LLAMA_FACTORY, {"finetuning_type": "freeze", "freeze_trainable_layers": 4}, {}, {"method.num_layers": 4}),
        (LLAMA_FACTORY, {"dataset": "faq"}, {}, {"data.columns": {"instruction": "question", "output": "answer"}}),
        (LLAMA_FACTORY, {"dataset": "glaive"}, {}, {"data.train": ["hf://datasets/llamafactory/glaive_toolcall_en"]}),
        (LLAMA_FACTORY, {"eval_dataset": "alpaca_en_demo"}, {}, {"data.validation": ["data/alpaca_en_demo.json"]}),
        (
            LLAMA_FACTORY,
            {"dataset": "identity,faq"},
            {},
            {
                "data.train": [
                    {"path": "data/identity.json", "name": "identity"},
                    {"path": "data/faq.csv", "name": "faq", "columns": FAQ_COLUMNS},
                ]
            },
        ),
        (
            LLAMA_FACTORY,
            {
                "dataset": "identity,alpaca_en_demo",
                "mix_strategy": "interleave_over",
                "interleave_probs": "0.7,0.3",
            },
            {},
            {
                "data.train": [
                    {"path": "data/identity.json", "name": "identity", "weight": 0.7},
                    {"path": "data/alpaca_en_demo.json", "name": "alpaca_en_demo", "weight": 0.3},
                ],
                "data.mixing.epoch_samples": "all_exhausted",
            },
        ),
        (
            LLAMA_FACTORY,
            {"dataset": "identity", "eval_dataset": "faq"},
            {},
            {
                "data.train": ["data/identity.json"],
                "data.validation": [{"path": "data/faq.csv", "name": "faq", "columns": FAQ_COLUMNS}],
            },
        ),
        (
            LLAMA_FACTORY,
            {"dataset": "identity,alpaca_en_demo", "mix_strategy": "concat"},
            {},
            {"data.train": ["data/identity.json", "data/alpaca_en_demo.json"]},
        ),
        (AXOLOTL, {"fsdp_config": {"offload_params": True}}, {}, {"parallelism.offload_params": "cpu"}),
        (AXOLOTL, {"fsdp": ["shard_grad_op"]}, {}, {"parallelism.zero_stage": 2}),
        (AXOLOTL, {"gradient_checkpointing": "offload"}, {}, {"optimization.offload_activations": True}),
        (AXOLOTL, {"plugins": ["axolotl.integrations.liger.LigerPlugin"]}, {}, {"task": "completion"}),
        (
            AXOLOTL,
            {"datasets": [{"path": "json", "data_files": ["x.jsonl"], "type": "chat_template"}]},
            {},
            {"task": "chat", "data.train": ["x.jsonl"]},
        ),
        (
            AXOLOTL,
            {
                "datasets": [
                    {
                        "path": "a/b",
                        "type": "chat_template",
                        "field_messages": "turns",
                        "message_property_mappings": {"role": "from", "content": "value"},
                    }
                ]
            },
            {},
            {"data.columns": {"conversations": "turns"}},
        ),
        (TRL, {}, {}, {"task": "chat", "method.lora_alpha": 32, "optimization.learning_rate": 2e-5}),
        (TRL, {}, {}, {"data.too_long": "truncate", "method.target_modules": ["q_proj", "v_proj"]}),
        (TRL, {"load_in_4bit": True}, {}, {"method.kind": "qlora", "method.double_quantization": False}),
        (TRL, {"beta": 0.2}, {}, {"task": "preference", "preference.beta": 0.2, "preference.loss": "dpo"}),
        (TRL, {"beta": 0.2}, {"trainer": "kto"}, {"task": "kto", "kto.beta": 0.2}),
        (TRL, {"desirable_weight": 2.0}, {}, {"task": "kto", "kto.desirable_weight": 2.0}),
    ],
)
def test_units_and_meanings_are_converted(convert, text, changed, options, expected):
    settings = convert(text, changed, **options).settings
    assert {key: settings[key].value for key in expected} == expected


def test_warmup_steps_become_a_fraction_only_if_the_number_of_steps_is_known(convert):
    known = convert(LLAMA_FACTORY, {"warmup_steps": 20, "max_steps": 200}, ("warmup_ratio",))
    assert known.settings["optimization.warmup_fraction"].value == 0.1
    unknown = convert(LLAMA_FACTORY, {"warmup_steps": 20}, ("warmup_ratio",))
    assert "optimization.warmup_fraction" not in unknown.settings
    (reason,) = [entry.reason for entry in unknown.not_carried if entry.key == "warmup_steps"]
    assert "20 divided by" in reason


def test_keys_of_a_data_set_that_its_type_does_not_read_are_listed(convert):
    entry = {
        "path": "a/b",
        "type": "alpaca",
        "field_messages": "turns",
        "split": "train[:20%]",
        "chat_template": "gemma",
    }
    reasons = [each.reason for each in convert(AXOLOTL, {"datasets": [entry]}).not_carried if each.key == "datasets"]
    assert [word for word in ("field_messages", "split", "chat_template") if word not in " ".join(reasons)] == []


def test_a_split_of_a_local_file_is_listed(convert):
    listed = convert(TRL, {"dataset_train_split": "train[:10%]"}).not_carried
    assert [entry.key for entry in listed] == ["dataset_train_split"]
    assert "split train[:10%]" in listed[0].reason


def test_a_deepspeed_file_with_offloading(convert, tmp_path):
    zero = {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/fast"}, "sub_group_size": 5}
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero, "aio": {"block_size": 1}}))
    result = convert(TRL, {"deepspeed": "ds.json"})
    section = result.recipe.parallelism
    assert (section.zero_stage, section.offload_optimizer, section.nvme_path) == (3, "nvme", "/fast")
    reasons = [entry.reason for entry in result.not_carried if entry.key == "deepspeed"]
    assert [reason.partition(":")[0] for reason in reasons] == ["sub_group_size", "aio"]


def test_a_json_file_with_tabs_is_read(tmp_path):
    path = tmp_path / "sft.json"
    path.write_text(json.dumps(yaml.safe_load(TRL), indent="\t"), encoding="utf-8")
    result = migrate(path, recipe_dir=tmp_path)
    assert result.tool == "trl"
    assert result.recipe.name == "sft"


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    path = tmp_path / "sft.yaml"
    text = TRL.replace("2.0e-5", "2e-5") + "lr_scheduler_kwargs: {min_lr: 1e-6}\n"
    path.write_text(text, encoding="utf-8")
    section = migrate(path, recipe_dir=tmp_path).recipe.optimization
    assert section.learning_rate == 2e-5
    assert section.min_learning_rate_fraction == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("text", "named"),
    [("a: [", "not valid YAML"), ("- a\n", "mapping"), ("", "mapping"), ("colour: red\n", "which tool")],
)
def test_what_is_no_configuration_is_an_error(tmp_path, text, named):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=named) as caught:
        migrate(path)
    assert str(path) in (caught.value.where or "")


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunesmith.cli.main", "migrate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_the_command_writes_a_recipe_and_never_replaces_one_unasked(tmp_path):
    source = HERE / "axolotl" / "lora_1b.yaml"
    first = run(source, "--out", "recipe.yaml", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "evals_per_epoch (line " in first.stdout
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.optimization.global_batch_size == 4
    (tmp_path / "recipe.yaml").write_text("mine")
    again = run(source, "--out", "recipe.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    forced = run(source, "--out", "recipe.yaml", "--force", "--gpus", 2, "--json", cwd=tmp_path)
    assert forced.returncode == 0, forced.stderr
    values = json.loads(forced.stdout)
    assert values["recipe"]["optimization"]["global_batch_size"] == 8
    assert values["settings"]["method.lora_rank"]["from"] == ["lora_r"]
    assert {"key", "line", "reason"} == values["not_carried"][0].keys()


def test_the_command_prints_the_recipe_and_reports_errors_without_a_traceback(tmp_path):
    path = tmp_path / "[bold]x.yaml"
    path.write_text(TRL + "router_aux_loss_coef: 0.1\n", encoding="utf-8")
    printed = run(path.name, cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert yaml.safe_load(printed.stdout)["method"]["lora_rank"] == 16
    assert "# Converted by `tunesmith migrate` from [bold]x.yaml (trl)." in printed.stdout
    assert "router_aux_loss_coef (line 8)" in printed.stderr
    path.write_text(TRL + "max_lenght: 5\n", encoding="utf-8")
    failed = run(path.name, cwd=tmp_path)
    assert failed.returncode == 2
    assert "[bold]x.yaml:8, key max_lenght" in failed.stderr
    assert "did you mean `max_length`?" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert run(path.name, "--from", "keras", cwd=tmp_path).returncode == 2
