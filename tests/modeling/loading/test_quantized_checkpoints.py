"""Models of quantized checkpoints are, bit for bit, the plain models of the dequantized values."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import make_tokenizer
from tests.modeling.base_model.test_supported import SIZES
from tests.modeling.moe_models import make_moe
from tests.modeling.quantized_checkpoints import write_four_bits, write_fp8, write_mxfp4
from tunesmith.configs.sections.method import Full, Lora, QLora
from tunesmith.errors import InputError
from tunesmith.modeling.base_model.facts import model_facts
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.stream import stored_in_fp32, stream_model
from tunesmith.modeling.proof.cut import prove_directory

LORA, FULL, QLORA = Lora(kind="lora"), Full(kind="full"), QLora(kind="qlora")
TOKENS = torch.arange(3, 60)[None]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra `qlora`"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("quantized")


def save(model, directory: Path) -> Path:
    model.save_pretrained(directory)
    make_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def llama(root, wide_llama) -> tuple[Path, Path]:
    """FP8 in blocks that do not divide the weights [64, 64], [32, 64] and [128, 64], and the dequantized model."""
    return root / "llama", write_fp8(wide_llama, root / "llama", (24, 40))


@pytest.fixture(scope="module")
def checkpoints(root, llama) -> dict[str, tuple[Path, Path]]:
    """Directory and directory of the dequantized model, by family."""
    made = {"llama": llama}
    plain = save(make_moe("Qwen3Moe"), root / "plain-moe")
    made["experts"] = (root / "moe", write_fp8(plain, root / "moe", (16, 24)))
    plain = save(make_moe("GptOss", intermediate_size=64), root / "plain-gpt-oss")
    made["mxfp4"] = (root / "gpt-oss", write_mxfp4(plain, root / "gpt-oss"))
    plain = save(deepseek(), root / "plain-deepseek")
    made["deepseek"] = (root / "deepseek", write_fp8(plain, root / "deepseek", (16, 16)))
    return made


def deepseek():
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(0)
    sizes = SIZES | {"num_key_value_heads": 4, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 1}
    sizes |= {"topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "q_lora_rank": 24}
    sizes |= {"kv_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**sizes))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.tensor([0.3, -0.4, 0.11, 0.07]))
    return model


def tensors_of(model) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def difference(directory: Path, expected: Path) -> float:
    """Of the losses per token, relative to those of the dequantized model."""
    with torch.no_grad():
        losses = [
            load_model(d, dtype=torch.float32)(input_ids=TOKENS, labels=TOKENS).loss for d in (directory, expected)
        ]
    return abs(float(losses[0] - losses[1])) / float(losses[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "experts", "mxfp4", "deepseek"])
def test_loaded_and_streamed_weights_are_the_dequantized_ones(checkpoints, family, dtype):
    directory, plain = checkpoints[family]
    expected = load_model(plain, dtype=dtype)
    streamed = (stream_model(path, dtype=dtype, place=lambda _: None) for path in (plain, directory))
    for actual in (load_model(directory, dtype=dtype), *streamed):
        tensors = tensors_of(actual)
        assert tensors.keys() == tensors_of(expected).keys()
        for name, tensor in tensors_of(expected).items():
            assert tensors[name].dtype == tensor.dtype, name
            assert torch.equal(tensors[name], tensor), name
        assert {**actual.config.to_dict(), "_name_or_path": ""} == {**expected.config.to_dict(), "_name_or_path": ""}
    with torch.no_grad():
        assert torch.equal(actual(input_ids=TOKENS).logits, expected(input_ids=TOKENS).logits)


@pytest.mark.parametrize("family", ["llama", "experts", "mxfp4", "deepseek"])
def test_facts_are_those_of_the_dequantized_model(checkpoints, family):
    directory, plain = checkpoints[family]
    for method in (LORA, FULL):
        facts, expected = model_facts(directory, "x", method), model_facts(plain, "x", method)
        assert facts.quantized is not None
        assert expected.quantized is None
        own = {"directory", "fingerprint", "quantized"}
        assert facts.model_dump(exclude=own) == expected.model_dump(exclude=own)
        assert facts.fingerprint != expected.fingerprint
    assert facts.quantized.name.startswith("MXFP4 in blocks of 32" if family == "mxfp4" else "FP8 in blocks of ")


def test_layers_that_predict_further_tokens_are_left_out(checkpoints, root):
    """As published by DeepSeek: a layer after the last one, which the class does not have."""
    directory, plain = shutil.copytree(checkpoints["deepseek"][0], root / "further"), checkpoints["deepseek"][1]
    tensors = load_file(directory / "model.safetensors")
    further = {name.replace(".1.", ".2.", 1): t.clone() for name, t in tensors.items() if "layers.1." in name}
    save_file(
        tensors | further | {"model.layers.2.eh_proj.weight": torch.ones(32, 64)}, directory / "model.safetensors"
    )
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 0}))
    with pytest.raises(InputError, match="the weights of 1 layers are not used by the configuration"):
        model_facts(directory, "x", LORA)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 1}))
    facts, expected = model_facts(directory, "x", LORA), model_facts(plain, "x", LORA)
    assert (facts.num_layers, facts.num_params, facts.adapters) == (2, expected.num_params, expected.adapters)
    assert difference(directory, plain) == 0


def test_planted_errors_are_detected(llama, root):
    """The loss shows scales that are off by one block; scales of transposed blocks do not fit and are refused."""
    directory, plain = llama
    assert difference(directory, plain) == 0
    tensors = load_file(directory / "model.safetensors")
    shifted, transposed = (shutil.copytree(directory, root / name) for name in ("shifted", "transposed"))
    change = {name: scale.roll(1, 0) for name, scale in tensors.items() if name.endswith("_scale_inv")}
    save_file(tensors | change, shifted / "model.safetensors")
    assert difference(shifted, plain) > 1e-3
    change = {name: scale.t().contiguous() for name, scale in tensors.items() if name.endswith("_scale_inv")}
    save_file(tensors | change, transposed / "model.safetensors")
    for read in (lambda: model_facts(transposed, "x", LORA), lambda: load_model(transposed, dtype=torch.float32)):
        with pytest.raises(InputError, match=r"has scales of shape \[\d, 3\]; blocks of 24 x 40 have \[3, \d\]"):
            read()


def test_master_weights_are_dequantized_in_fp32(llama):
    directory, plain = llama
    model = stream_model(directory, dtype=torch.bfloat16)
    expected = dict(load_model(plain, dtype=torch.float32).named_parameters())
    masters = dict(stored_in_fp32(directory, model))
    assert masters.keys() == expected.keys()
    assert all(torch.equal(masters[name], weight) for name, weight in expected.items())
    assert any((masters[name] != weight.float()).any() for name, weight in model.named_parameters())


def test_the_proof_holds_and_cuts_layers(llama, root):
    findings, cut = prove_directory(llama[0])
    assert findings.packing
    assert cut == []
    deep = root / "deep"
    shutil.copytree(llama[0], deep)
    config = json.loads((deep / "config.json").read_text())
    tensors = load_file(deep / "model.safetensors")
    more = {
        name.replace("layers.1.", f"layers.{layer}."): tensor.clone()
        for name, tensor in tensors.items()
        for layer in (2, 3)
        if "layers.1." in name
    }
    save_file(tensors | more, deep / "model.safetensors")
    (deep / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    findings, cut = prove_directory(deep)
    assert findings.packing
    assert cut == ["4 layers -> the first 2"]


def test_compressed_tensors_with_a_scale_per_channel(wide_llama, root):
    weights = {"type": "float", "num_bits": 8, "strategy": "channel", "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    stated = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}
    plain = write_fp8(wide_llama, root / "channels", (1, 1 << 20), stated)
    assert model_facts(root / "channels", "x", LORA).quantized.name == "FP8 with a scale per output channel"
    assert difference(root / "channels", plain) == 0


@pytest.mark.parametrize("family", ["llama", "mxfp4"])
def test_transformers_own_dequantization_gives_the_same_model(checkpoints, wide_llama, root, family):
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

    directory, options = checkpoints["mxfp4"][0], Mxfp4Config(dequantize=True)
    if family == "llama":  # transformers needs whole blocks
        directory, options = root / "whole-blocks", FineGrainedFP8Config(dequantize=True, weight_block_size=(16, 32))
        write_fp8(wide_llama, directory, (16, 32))
    expected = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, quantization_config=options)
    weights = dict(load_model(directory, dtype=torch.bfloat16).named_parameters())
    for name, weight in expected.named_parameters():  # the embedding of FP8 models stays in the type of the files
        assert torch.equal(weights[name], weight.to(torch.bfloat16)), name


@needs_bitsandbytes
def test_qlora_on_fp8_quantizes_the_dequantized_weights(llama):
    directory, plain = llama
    actual, expected = (stream_model(d, dtype=torch.float32, nf4=True).state_dict() for d in (directory, plain))
    assert actual.keys() == expected.keys()
    assert sum(tensor.dtype == torch.uint8 for tensor in actual.values()) >= 14
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("kind", "double", "dtype"),
    [("nf4", True, torch.float32), ("nf4", False, torch.bfloat16), ("fp4", True, torch.float32)],
)
def test_bitsandbytes_weights_are_kept_bit_for_bit(wide_llama, tmp_path, kind, double, dtype):
    from bitsandbytes.functional import dequantize_4bit

    directory = tmp_path / "four"
    plain = write_four_bits(wide_llama, directory, kind, double, dtype)
    facts, expected = (model_facts(d, "x", QLORA) for d in (directory, plain))
    assert facts.num_params == expected.num_params
    assert facts.adapters == expected.adapters
    assert facts.quantized.name == f"{kind.upper()} of bitsandbytes" + (", double quantization" if double else "")
    stored = load_file(directory / "model.safetensors")
    model = stream_model(directory, dtype=torch.float32, nf4=True)
    state = model.state_dict()
    kept = {name: tensor for name, tensor in stored.items() if name in state and ".quant_state." not in name}
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())
    assert sum(name.endswith(".absmax") for name in kept) == 13
    assert sum(tensor.dtype == torch.uint8 and name.endswith("proj.weight") for name, tensor in state.items()) == 13
    weights = load_file(plain / "model.safetensors")
    for name, weight in model.named_parameters():
        if hasattr(weight, "quant_state"):
            assert torch.equal(dequantize_4bit(weight.data, weight.quant_state).float(), weights[name])
    loaded = load_model(directory, dtype=torch.float32)
    assert type(loaded.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.named_parameters())
    with torch.no_grad():
        logits = [m(input_ids=TOKENS).logits for m in (model, loaded)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)


@needs_bitsandbytes
def test_bitsandbytes_is_read_for_qlora_only_and_damage_is_named(wide_llama, tmp_path):
    directory = tmp_path / "four"
    write_four_bits(wide_llama, directory, "nf4", True)
    for method in (LORA, FULL):
        with pytest.raises(InputError, match=r"only method\.kind: qlora trains on") as caught:
            model_facts(directory, "x", method)
        assert "set method.kind: qlora" in str(caught.value)
    tensors = load_file(directory / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight.nested_absmax"
    save_file(tensors | {name: tensors[name] * float("nan")}, directory / "model.safetensors")
    with pytest.raises(InputError, match="missing or not finite"):
        stream_model(directory, dtype=torch.float32, nf4=True)
    del tensors[name]
    save_file(tensors, directory / "model.safetensors")
    for nf4 in (True, False):
        with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
            stream_model(directory, dtype=torch.float32, nf4=nf4)


@pytest.mark.parametrize(
    "stated",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "something new"},
        {},
        "yes",
    ],
)
def test_other_formats_are_refused_with_what_to_do(wide_llama, tmp_path, stated):
    directory = shutil.copytree(wide_llama, tmp_path / "model")
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": stated}))
    for read in (lambda: model_facts(directory, "x", QLORA), lambda: load_model(directory, dtype=torch.float32)):
        with pytest.raises(InputError, match="cannot be trained, and an adapter cannot be merged") as caught:
            read()
        assert "quantization_config" in str(caught.value)
        assert "set model.base to the repository with the unquantized weights" in str(caught.value)


def test_a_classifier_is_refused(llama):
    with pytest.raises(InputError, match="the task classification does not read"):
        model_facts(llama[0], "x", LORA, task="classification")
