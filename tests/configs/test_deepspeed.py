"""DeepSpeed's configuration, and a user's file merged into it: contradictions are reported with both keys."""

import pytest

from tunesmith.configs.deepspeed import Numbers, adopt, deepspeed_config
from tunesmith.configs.plan import ParallelismFacts
from tunesmith.configs.sections.optimization import Optimization
from tunesmith.configs.sections.processes import Parallelism
from tunesmith.errors import InputError

NUMBERS = Numbers(2, 4, 10_000_000, "fp32", True, "cpu")
FACTS = ParallelismFacts(zero_stage=3, offload_optimizer="cpu")
OPTIMIZATION = Optimization(learning_rate=1e-4, max_grad_norm=0.5, global_batch_size=16, micro_batch_size=2)

# From the Transformers documentation, for its trainer.
TRANSFORMERS_EXAMPLE = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


def merged(user: dict) -> dict:
    return deepspeed_config(FACTS, OPTIMIZATION, NUMBERS, user=user, user_file="ds.json")


def test_a_file_for_transformers_is_accepted_and_its_tuning_is_passed_to_deepspeed():
    config = merged(TRANSFORMERS_EXAMPLE)
    zero = config["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["overlap_comm"] is True
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert zero["reduce_bucket_size"] == 10_000_000
    assert config["gradient_clipping"] == 0.5
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["steps_per_print"] == 2000
    assert "optimizer" not in config
    assert "fp16" not in config


@pytest.mark.parametrize(
    ("user", "user_value", "recipe_value"),
    [
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage is 2", "parallelism.zero_stage is 3"),
        ({"gradient_clipping": 1.0}, "gradient_clipping is 1.0", "optimization.max_grad_norm is 0.5"),
        ({"train_batch_size": 8}, "train_batch_size is 8", "optimization.global_batch_size is 16"),
        ({"train_micro_batch_size_per_gpu": 4}, "gpu is 4", "optimization.micro_batch_size is 2"),
        ({"optimizer": {"params": {"lr": 2e-4}}}, "params.lr is 0.0002", "optimization.learning_rate is 0.0001"),
        ({"optimizer": {"type": "Lamb"}}, 'optimizer.type is "Lamb"', 'optimization.optimizer is "AdamW"'),
        ({"scheduler": {"type": "WarmupLR"}}, 'scheduler.type is "WarmupLR"', 'optimization.schedule is "cosine"'),
        ({"bf16": {"enabled": True}}, "bf16.enabled is true", "precision is false"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is true", "precision is false"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            'device is "nvme"',
            'parallelism.offload_optimizer is "cpu"',
        ),
    ],
)
def test_a_contradiction_with_the_recipe_is_an_error_that_names_both_keys(user, user_value, recipe_value):
    with pytest.raises(InputError) as caught:
        merged(user)
    assert user_value in caught.value.what
    assert recipe_value in caught.value.what
    assert caught.value.where == "ds.json"


@pytest.mark.parametrize("key", ["zero_quantized_gradients", "zero_hpz_partition_size", "zenflow"])
def test_a_key_that_would_change_the_numbers_is_rejected(key):
    with pytest.raises(InputError, match=f"zero_optimization.{key}"):
        merged({"zero_optimization": {key: True}})


def test_a_misspelled_key_is_reported_with_the_nearest_key():
    with pytest.raises(InputError) as caught:
        merged({"zero_optimization": {"overlap_com": True}})
    assert "did you mean overlap_comm?" in str(caught.value.remedy)


def test_keys_that_the_recipe_does_not_set_come_from_the_file():
    user = {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/fast"}}}
    from_file = adopt(Parallelism(), user)
    assert (from_file.zero_stage, from_file.offload_params, from_file.nvme_path) == (3, "nvme", "/fast")
    from_recipe = adopt(Parallelism(zero_stage=2, offload_params="none"), user)
    assert (from_recipe.zero_stage, from_recipe.offload_params) == (2, "none")
    assert adopt(Parallelism(zero_stage="auto"), user).zero_stage == 3


def test_bf16_training_of_the_base_keeps_master_weights_and_gradients_in_fp32():
    numbers = Numbers(2, 4, 10, "bf16", True, "cuda")
    config = deepspeed_config(FACTS, OPTIMIZATION, numbers)
    assert config["bf16"]["enabled"] is True
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"
    adapters = deepspeed_config(FACTS, OPTIMIZATION, Numbers(2, 4, 10, "bf16", False, "cuda"))
    assert "bf16" not in adapters


def test_nvme_offloading_uses_the_given_directory():
    facts = ParallelismFacts(zero_stage=3, offload_optimizer="nvme", offload_params="nvme")
    zero = deepspeed_config(facts, OPTIMIZATION, NUMBERS, nvme_path="/fast")["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "nvme", "pin_memory": False, "nvme_path": "/fast"}
    assert zero["offload_param"]["nvme_path"] == "/fast"


def test_deepspeed_accepts_the_configuration():
    pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = DeepSpeedZeroConfig(**merged(TRANSFORMERS_EXAMPLE)["zero_optimization"])
    assert zero.stage == 3
    assert zero.offload_optimizer is not None
    assert zero.offload_optimizer.device == "cpu"
