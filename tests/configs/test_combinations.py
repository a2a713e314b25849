"""Supported combinations: every rule is needed, and errors name the nearest supported combination."""

from itertools import product

import pytest

from tunesmith.configs.combinations import RULES, Combination, nearest, require_combination
from tunesmith.errors import InputError

PLAIN = Combination("lora", False, "adamw", 0, "none", "none", False, "cpu")


def with_(**changes) -> Combination:
    return Combination(**{**PLAIN.__dict__, **changes})


ALL = [
    Combination(*values)
    for values in product(
        ("full", "lora", "qlora"),
        (False, True),
        ("adamw", "adamw_8bit", "paged_adamw_8bit"),
        (0, 1, 2, 3),
        ("none", "cpu", "nvme"),
        ("none", "cpu", "nvme"),
        (False, True),
        ("cpu", "cuda"),
    )
] + [
    Combination(method, False, "adamw", stage, "none", "none", False, "cpu", task, export, *switches)
    for method, stage, task, export, *switches in product(
        ("full", "lora", "qlora"),
        (0, 2, 3),
        ("chat", "classification", "seq2seq", "preference"),
        ("auto", "adapter"),
        (False, True),
        (False, True),
        (False, True),
    )
]
ALL += [with_(task="classification", adds_tokens=True), with_(method="last_layers", adds_tokens=True)]
ALL += [with_(task=task, z_loss=True) for task in ("chat", "preference", "seq2seq")]
ALL += [
    with_(device=device, zero_stage=stage, offload_activations=True) for device in ("cpu", "cuda") for stage in (2, 3)
]


def works(combination: Combination) -> bool:
    return not any(rule.forbids(combination) for rule in RULES)


def test_every_rule_forbids_a_combination_that_no_other_rule_forbids():
    for rule in RULES:
        others = [other for other in RULES if other is not rule]
        assert any(rule.forbids(c) and not any(other.forbids(c) for other in others) for c in ALL), rule.why


def test_common_combinations_are_supported():
    for method, stage in product(("full", "last_layers", "lora", "qlora"), (0, 1, 2, 3)):
        for device in ("cpu", "cuda"):
            require_combination(with_(method=method, zero_stage=stage, device=device))
            require_combination(with_(method=method, zero_stage=stage, device=device, optimizer="adamw_8bit"))
    require_combination(with_(zero_stage=3, offload_optimizer="cpu", offload_params="cpu"))
    require_combination(with_(zero_stage=3, offload_optimizer="nvme", offload_params="nvme", nvme_path=True))
    require_combination(with_(use_dora=True, method="qlora", zero_stage=2))
    for task, stage in product(("classification", "seq2seq", "preference", "kto"), (0, 1, 2)):
        for method in ("full", "last_layers", "lora"):
            require_combination(with_(task=task, zero_stage=stage, method=method))
    require_combination(with_(task="preference", method="qlora"))
    require_combination(with_(task="kto", method="qlora"))
    require_combination(with_(task="classification", label_smoothing=True, single_label=True))


def test_the_nearest_combination_is_supported():
    for combination in ALL:
        if not works(combination) and not (not combination.nvme_path and "nvme" in str(combination)):
            assert works(nearest(combination)), combination


@pytest.mark.parametrize(
    ("combination", "why", "remedy"),
    [
        (with_(use_dora=True, zero_stage=3), "DoRA", "parallelism.zero_stage: 2"),
        (with_(offload_params="cpu", zero_stage=2), "only zero_stage 3 offloads weights", "parallelism.zero_stage: 3"),
        (with_(offload_optimizer="cpu"), "only ZeRO stages", "parallelism.zero_stage: 2"),
        (with_(offload_optimizer="cpu", optimizer="adamw_8bit", zero_stage=2), "fp32", "optimization.optimizer: adamw"),
        (with_(optimizer="paged_adamw_8bit"), "no GPU", "optimization.optimizer: adamw_8bit"),
        (with_(task="preference", zero_stage=3), "chat, completion and text only", "parallelism.zero_stage: 2"),
        (with_(task="seq2seq", method="qlora"), "causal language models", "method.kind: lora"),
        (with_(task="classification", export="adapter"), "label names", "export.form: auto"),
        (with_(task="preference", label_smoothing=True), "softmax loss", "label_smoothing: false"),
        (with_(task="preference", z_loss=True), "loss over tokens", "optimization.z_loss: false"),
        (with_(task="seq2seq", neftune=True), "encoder-decoder", "optimization.neftune_alpha: false"),
        (with_(offload_activations=True), "no GPU", "optimization.offload_activations: false"),
        (
            with_(offload_activations=True, zero_stage=3, device="cuda"),
            "gathers weights",
            "parallelism.zero_stage: 2",
        ),
        (with_(zero_stage=3, offload_params="nvme"), "parallelism.nvme_path", "parallelism.offload_params: cpu"),
    ],
)
def test_an_unsupported_combination_reports_the_reason_and_the_nearest_one(combination, why, remedy):
    with pytest.raises(InputError) as caught:
        require_combination(combination)
    assert why in caught.value.what
    assert caught.value.remedy is not None
    assert remedy in caught.value.remedy
    assert caught.value.remedy.count(":") == 2  # one key changed, no more
    assert f"parallelism.zero_stage: {combination.zero_stage}" in str(caught.value.where)
