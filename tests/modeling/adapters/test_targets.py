"""Every name that an error offers for `target_modules` gets an adapter that learns; every other is rejected by the plan
and by the method, and not offered."""

import re
from typing import Any

import pytest
import torch

from tests.modeling.base_model.test_supported import LENGTHS, make_batch, make_model
from tests.modeling.decoders import DECODERS
from tests.modeling.losses.test_task_families import ENCODERS, PAIRS, made
from tunesmith.configs.sections.method import Lora
from tunesmith.errors import InputError
from tunesmith.kernels.dispatch import Kernels
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.base_model.adapter_targets import adaptable_modules, require_mergeable, require_targets
from tunesmith.modeling.loading.heads import Labels
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.classification import ClassificationLoss
from tunesmith.modeling.losses.sequence import teacher_forced
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.patching.replacements import use_kernels
from tunesmith.training.export.files import plain_weights

MODELS = [("causal", name) for name in DECODERS]
MODELS += [("classifier", name) for name in ENCODERS] + [("encoder_decoder", name) for name in PAIRS]
EMBEDDINGS = {"GPT2LMHeadModel": ["wte", "lm_head"]}


def make(kind: str, name: str) -> Any:
    if kind == "causal":
        return make_model(name)
    if kind == "classifier":
        return made("SequenceClassification", name, ENCODERS[name], num_labels=3)
    special = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    return made("ConditionalGeneration", name, PAIRS[name], **special)


def loss_of(kind: str, model: Any) -> torch.Tensor:
    """The loss on a small batch, as a run computes it."""
    tokens, labels, positions = make_batch()
    if kind == "causal":
        use_kernels(model, Kernels())
        return CausalLoss(model).train()(tokens, labels, positions, LENGTHS).loss_sum
    if kind == "classifier":
        loss = ClassificationLoss(model, Labels("single_label", ("a", "b", "c"), 0), None)
        return loss.logits(tokens % 96, positions, LENGTHS).logsumexp(-1).sum()
    rows = [row % 96 for row in tokens.split(LENGTHS)]
    logits = teacher_forced(
        causal_lm(model), rows, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), outer=model
    )
    return logits.logsumexp(-1).sum()


def shapes_of(model) -> dict[str, list[int]]:
    """Of the tensors in the model's files: tied ones once."""
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


def lora(targets: list[str], **options) -> Lora:
    return Lora(kind="lora", lora_rank=2, target_modules=targets, **options)


def fill(model) -> None:
    """Give every adapter an effect: one of its two matrices is initialized with zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


WITH_DORA = [("causal", "Phi3ForCausalLM"), ("causal", "GPT2LMHeadModel"), ("encoder_decoder", "Bart")]


@pytest.mark.parametrize(
    ("kind", "name", "use_dora"), [(*model, False) for model in MODELS] + [(*model, True) for model in WITH_DORA]
)
def test_every_offered_module_gets_an_adapter_that_learns(kind, name, use_dora):
    base = make(kind, name)
    offered = sorted({path.rpartition(".")[2] for path in adaptable_modules(shapes_of(base), kind)})
    assert len(offered) > 3
    for target in offered:
        require_targets(lora([target]), shapes_of(base), kind)
        model = apply_method(make(kind, name), lora([target], use_dora=use_dora))
        fill(model)
        loss_of(kind, model).backward()
        for key, parameter in trained_parameters(model).items():
            assert parameter.grad is not None, (target, key)
        adapters = [parameter for key, parameter in trained_parameters(model).items() if ".lora_" in key]
        assert any(parameter.grad.abs().max() > 0 for parameter in adapters), target


@pytest.mark.parametrize(("kind", "name"), MODELS)
def test_every_other_module_is_rejected_before_and_after_loading(kind, name):
    base = make(kind, name)
    shapes = shapes_of(base)
    offered = {path.rpartition(".")[2] for path in adaptable_modules(shapes, kind)}
    others = {path.rpartition(".")[2] for path, _ in base.named_modules() if path} - offered - {"0", "1"}
    assert {"dropout", "LayerNorm", "norm", "act_fn", "ln_f", "layer_norm", "layernorm_embedding"} & others
    for target in others:
        with pytest.raises(InputError, match=r"can(not)? get an adapter") as before:
            require_targets(lora([target]), shapes, kind)
        with pytest.raises(InputError, match=r"can(not)? get an adapter") as after:
            apply_method(base, lora([target]))
        for caught in (before, after):
            names = re.sub("choose from: |;.*", "", str(caught.value.remedy)).split(", ")
            assert target not in names
            assert caught.value.where == "method.target_modules"


@pytest.mark.parametrize(
    ("targets", "accepted"),
    [
        (["1.self_attn.q_proj"], True),
        (["model.layers.0.mlp.up_proj", "v_proj"], True),
        (["layers.1"], False),
        (["self_attn"], False),
        (["q_proj|k_proj"], False),
        ([".*_proj"], False),
        (["all-linear"], False),
        (["_proj"], False),
        ([], False),
    ],
)
def test_ends_of_paths_are_accepted_and_patterns_rejected(targets, accepted):
    model = make("causal", "LlamaForCausalLM")
    for check in (
        lambda: require_targets(lora(targets), shapes_of(model), "causal"),
        lambda: apply_method(model, lora(targets)),
    ):
        if accepted:
            check()
        else:
            with pytest.raises(InputError, match=r"adapter"):
                check()


def test_merging_into_shared_weights_of_an_encoder_decoder_is_rejected():
    for target in ("lm_head", "decoder.embed_tokens"):
        with pytest.raises(InputError, match=f"adapter on {target} cannot be merged"):
            require_mergeable(lora([target]), "encoder_decoder")
        require_mergeable(lora([target]), "causal")
    require_mergeable(lora(["q"]), "encoder_decoder")


@pytest.mark.parametrize("name", DECODERS)
def test_merging_adapters_on_embedding_and_head_gives_the_models_logits(name):
    """Also where the two share their weights: the merged model stores both."""
    model = apply_method(make("causal", name), lora(EMBEDDINGS.get(name, ["embed_tokens", "lm_head"])))
    fill(model)
    base, merged = causal_lm(model), make("causal", name)
    merged.config.tie_word_embeddings = False
    merged = type(merged)(merged.config).eval()
    merged.load_state_dict({key: weight() for key, weight in plain_weights(base, torch.float32).items()})
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, base(tokens).logits, rtol=1e-4, atol=1e-4)
        assert (base(tokens).logits - make("causal", name)(tokens).logits).abs().max() > 0.01
