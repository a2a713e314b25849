"""Multimodal checkpoints: the text model is trained, and exports are read back as the published class."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Gemma3TextConfig

from tests.modeling.multimodal_models import make_multimodal, tensors_of
from tests.training.export.test_export import LORA, Trained, largest_difference, plain_logits
from tunesmith.configs.recipe import Recipe
from tunesmith.data.tokenization.model_size import embedding_size
from tunesmith.errors import InputError, RunFault
from tunesmith.evaluation.subject import find_subject, stored_dtype
from tunesmith.evaluation.trained import load_trained
from tunesmith.inference.adapters import AdaptedLinear, Adapters
from tunesmith.launcher.planning.carried import carried_choice
from tunesmith.launcher.planning.prepare_run import find_model
from tunesmith.launcher.runs.compatibility import require_same_model
from tunesmith.modeling.adapters.earlier_adapter import copy_adapter
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.base_model.facts import model_facts
from tunesmith.modeling.base_model.multimodal import own_path, text_model_in
from tunesmith.modeling.base_model.new_rows import NewRows, write_with_rows
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.loading.stream import stream_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.proof.cut import prove_directory
from tunesmith.training.export import whole_checkpoint
from tunesmith.training.export.published_class import published_class

FAMILIES = ("gemma3", "qwen3_5", "llama4")
FULL = {"kind": "full"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("multimodal")
    return {family: make_multimodal(root / family, family) for family in (*FAMILIES, "mistral3")}


def plain(trained: Trained, directory: Path) -> list[torch.Tensor]:
    """Logits of the text model that is loaded from a directory."""
    return plain_logits(trained, load_model(directory, dtype=torch.float32))


def is_text(base: Path, name: str) -> bool:
    text = text_model_in(base)
    assert text is not None
    return text.names.own_name(name) is not None


@pytest.mark.parametrize(
    ("family", "method"),
    [("gemma3", FULL), ("gemma3", LORA), ("qwen3_5", FULL), ("qwen3_5", LORA), ("llama4", LORA), ("mistral3", FULL)],
)
def test_whole_export_loads_as_the_published_class_with_the_other_tensors_unchanged(family, method, bases, tmp_path):
    base = bases[family]
    trained = Trained(base, tmp_path / "run", method).train()
    result = trained.export(form="model")
    assert result.gate["passed"]

    whole = published_class(base).from_pretrained(result.path)
    assert type(whole).__name__.endswith("ForConditionalGeneration")
    assert whole.dtype == torch.float32  # the text model's weights are not rounded on loading
    assert (
        largest_difference(plain_logits(trained, whole), plain_logits(trained, load_model(base, dtype=torch.float32)))
        > 0.3
    )
    assert (
        largest_difference(
            plain_logits(trained, whole), plain_logits(trained, load_model(result.path, dtype=torch.float32))
        )
        < 1e-4
    )

    before, after = tensors_of(base), tensors_of(result.path)
    assert before.keys() == after.keys()
    others = [name for name in before if not is_text(base, name)]
    assert len(others) > 10
    for name in others:
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name]), name
    assert any(not torch.equal(before[name].float(), after[name]) for name in before if is_text(base, name))
    for name in ("preprocessor_config.json", "tokenizer.json"):
        assert (result.path / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_export_names_the_modules_of_the_published_class(family, bases, tmp_path):
    base = bases[family]
    trained = Trained(base, tmp_path / "run", LORA).train()
    export = trained.export(form="adapter")
    assert export.gate["passed"]
    tensors = load_file(export.path / "adapter_model.safetensors")
    assert all("language_model." in name for name in tensors)

    whole = published_class(base).from_pretrained(base, dtype=torch.float32)
    published = PeftModel.from_pretrained(whole, str(export.path))
    adapted = {name for name, _ in published.named_modules() if name.endswith("lora_A")}
    assert adapted
    assert not any("vision" in name or "visual" in name for name in adapted)
    own = load_model(export.path, dtype=torch.float32)
    assert largest_difference(plain_logits(trained, published), plain_logits(trained, own)) < 1e-4
    assert (
        largest_difference(plain_logits(trained, load_model(base, dtype=torch.float32)), plain_logits(trained, own))
        > 0.3
    )

    continued = apply_method(causal_lm(load_model(base, dtype=torch.float32)), trained.plan.recipe.method)
    copy_adapter(continued, export.path)  # type: ignore[arg-type]
    expected, copied = trained_parameters(trained.model), trained_parameters(continued)
    assert expected.keys() == copied.keys()
    assert all(torch.equal(expected[name], copied[name]) for name in expected)


def test_engine_serves_an_adapter_on_the_published_class(bases, tmp_path):
    export = Trained(bases["gemma3"], tmp_path / "run", LORA).train().export(form="adapter").path
    adapters = Adapters(load_model(bases["gemma3"], dtype=torch.float32), torch.float32, torch.device("cpu"))
    adapters.use(str(export))
    adapted = [path for path, module in adapters.model.named_modules() if isinstance(module, AdaptedLinear)]
    assert len(adapted) == len(load_file(export / "adapter_model.safetensors")) / 2
    adapters.unload(str(export))
    adapters.use(str(export))  # the layers have other paths once they are adapted
    assert adapters.loaded.keys() == {str(export)}


def test_weights_that_an_adapter_does_not_have_are_an_error(bases, tmp_path):
    export = Trained(bases["gemma3"], tmp_path / "run", LORA).train().export(form="adapter").path
    path = export / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(dict(list(tensors.items())[2:]), path)
    (export / "manifest.json").unlink()
    with pytest.raises(InputError, match="missing adapter keys"):
        load_model(export, dtype=torch.float32)


PATTERNS = {
    "gemma3": (["self_attn.q_proj", "mlp.down_proj"], [], {"language_model.layers.0.self_attn.q_proj": 30, "mlp.*": 2}),
    "llama4": (["self_attn.q_proj"], ["gate_up_proj", "down_proj"], {r"language_model.*\.experts\.down_proj": 30}),
}
"""Ends of paths of modules and of parameters of experts, and alpha_pattern."""


@pytest.mark.parametrize("family", PATTERNS)
@torch.no_grad()
def test_patterns_of_scale_and_rank_apply_as_in_peft(family, bases, tmp_path):
    modules, parameters, alphas = PATTERNS[family]
    whole = published_class(bases[family]).from_pretrained(bases[family], dtype=torch.float32)
    paths = [name for name, _ in whole.named_modules() if "language_model" in name and name.endswith(tuple(modules))]
    ranks = {r"language_model.*layers\.1\.self_attn\.q_proj": 2}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=paths, rank_pattern=ranks, alpha_pattern=alphas)
    config.target_parameters = [f"layers.1.feed_forward.experts.{name}" for name in parameters] or None
    published = get_peft_model(whole, config).eval()
    for parameter in published.parameters():
        if parameter.requires_grad:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    directory = tmp_path / "adapter"
    published.save_pretrained(directory)
    tokens = torch.arange(3, 30)[None]
    expected = published(input_ids=tokens).logits

    loaded = load_model(directory, dtype=torch.float32, base=bases[family])
    assert largest_difference([loaded(input_ids=tokens).logits], [expected]) < 1e-4
    if parameters:
        return  # the engine refuses adapters on the experts of Llama 4
    adapters = Adapters(load_model(bases[family], dtype=torch.float32), torch.float32, torch.device("cpu"))
    adapters.use(str(directory))
    adapters.rows.body = adapters.rows.head = [(0, tokens.numel(), str(directory))]
    assert largest_difference([adapters.model(input_ids=tokens).logits], [expected]) < 1e-4


def test_adapter_on_the_vision_tower_is_refused(bases, tmp_path):
    export = Trained(bases["gemma3"], tmp_path / "run", LORA).train(1).export(form="adapter").path
    path, prefix = export / "adapter_model.safetensors", "base_model.model.model."
    tower, unknown = "vision_tower.encoder.layers.0.self_attn.q_proj", "language_model.layers.7.self_attn.q_proj"
    tensors = load_file(path)
    (export / "manifest.json").unlink()
    save_file({**tensors, f"{prefix}{tower}.lora_A.weight": torch.ones(4, 16)}, path)
    with pytest.raises(InputError) as refused:
        load_model(export, dtype=torch.float32)
    message = str(refused.value)
    assert f"not part of the text model, which alone is loaded, such as model.{tower}" in message
    assert str(path) in message
    assert "merge it with peft into the multimodal model" in message
    save_file({**tensors, f"{prefix}{unknown}.lora_A.weight": torch.ones(4, 32)}, path)
    with pytest.raises(InputError, match=r"1 of its weights are for no module, such as model\.layers\.7"):
        load_model(export, dtype=torch.float32)


@pytest.mark.parametrize("fault", ["lost", "changed", "added"])
def test_gate_refuses_an_export_whose_other_tensors_differ(fault, bases, tmp_path, monkeypatch):
    write = whole_checkpoint._write_file

    def with_fault(path, metadata, tensors):
        name = next((name for name in tensors if "vision_tower" in name and name.endswith("weight")), None)
        if name is not None and fault == "lost":
            del tensors[name]
        elif name is not None and fault == "changed":
            stored = load_file(tensors[name].path)[name].clone()
            stored.view(-1).view(torch.uint16)[0] ^= 1  # the last bit of one number
            tensors[name] = stored
        elif name is not None:
            tensors["vision_tower.extra"] = torch.zeros(2)
        return write(path, metadata, tensors)

    monkeypatch.setattr(whole_checkpoint, "_write_file", with_fault)
    trained = Trained(bases["gemma3"], tmp_path / "run", FULL).train(1)
    with pytest.raises(RunFault, match="vision_tower"):
        trained.export(form="model")
    assert not trained.run.export.exists()


def test_facts_and_plan_describe_the_text_model_and_what_is_carried_through(bases):
    facts = model_facts(bases["qwen3_5"], "q", Recipe.model_validate(_recipe(FULL)).method)
    others = {name: t for name, t in tensors_of(bases["qwen3_5"]).items() if not is_text(bases["qwen3_5"], name)}
    assert facts.model_type == "qwen3_5_text"
    assert facts.num_params == sum(p.numel() for p in load_model(bases["qwen3_5"], dtype=torch.float32).parameters())
    assert facts.carried is not None
    assert facts.carried.num_tensors == len(others)
    assert facts.carried.num_bytes == sum(t.numel() * t.element_size() for t in others.values())
    assert facts.carried.modules == ["visual", "mtp"]
    (choice,) = carried_choice(facts)
    assert choice.num_bytes == facts.carried.num_bytes
    assert "Qwen3_5ForConditionalGeneration" in choice.reason


@pytest.mark.parametrize("family", ["gemma3", "llama4"])
def test_text_model_is_proven_and_streamed(family, bases):
    findings, _ = prove_directory(bases[family])
    assert findings.packing
    assert findings.loss == "fused"
    loaded, streamed = load_model(bases[family], dtype=torch.float32), stream_model(bases[family], dtype=torch.float32)
    weights = streamed.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.state_dict().items())


def test_multimodal_model_without_a_class_for_its_text_model_is_refused(bases, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(bases["gemma3"], directory)
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["Qwen2_5_VLForConditionalGeneration"]
    config["text_config"]["model_type"] = "qwen2_5_vl_text"
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as refused:
        model_facts(directory, "q", Recipe.model_validate(_recipe(FULL)).method)
    assert "qwen2_5_vl_text" in str(refused.value)
    assert "multimodal" in str(refused.value)


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("model.language_model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
        ("language_model.model.layers.11.mlp.up_proj.lora_A.weight", "model.layers.11.mlp.up_proj.lora_A.weight"),
        ("model.language_model.embed_tokens.token_adapter.x", "model.embed_tokens.token_adapter.x"),
        ("language_model.lm_head.lora_B.weight", "lm_head.lora_B.weight"),
        ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
        ("lm_head", "lm_head"),
        ("model.vision_tower.encoder.layers.0.q_proj", "model.vision_tower.encoder.layers.0.q_proj"),
        ("model.visual.layers.0.q_proj", "model.visual.layers.0.q_proj"),
    ],
)
def test_paths_of_the_published_class_and_of_the_text_model(path, own):
    assert own_path(path) == own


@pytest.mark.parametrize(("family", "form"), [("gemma3", "adapter"), ("qwen3_5", "model"), ("llama4", "model")])
def test_added_tokens_are_trained_and_exported(family, form, bases, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    values = {**_recipe(LORA), "model": {"base": str(bases[family]), "add_tokens": ["<a>", "<b>"]}}
    recipe = Recipe.model_validate(values)
    facts = find_model(recipe, tmp_path)
    directory = Path(facts.directory)
    assert tensors_of(directory).keys() == tensors_of(bases[family]).keys()
    trained = Trained(directory, tmp_path / "run", LORA)
    trained.plan = trained.plan.model_copy(update={"model": facts, "recipe": recipe})
    trained.plan.write(trained.run.plan)
    model = causal_lm(load_model(directory, dtype=torch.float32, attention=PACKED))
    trained.model = apply_method(model, recipe.method, new_rows=facts.new_rows)
    trained.loss = CausalLoss(trained.model)
    export = trained.train(2).export(form=form)
    assert export.gate["passed"]
    assert facts.vocab_size == 386
    (first, *_), (expected, *_) = plain(trained, export.path), trained.logits()
    assert largest_difference([first], [expected]) < 1e-4


def test_rows_are_added_where_the_configuration_omits_their_number(bases, tmp_path):
    """Published configurations omit what equals the default of the class; a vision tower may have as many rows."""
    base = tmp_path / "base"
    shutil.copytree(bases["mistral3"], base)
    config = json.loads((base / "config.json").read_text())
    del config["text_config"]["vocab_size"]
    (base / "config.json").write_text(json.dumps(config))
    tower = base / "model-00001-of-00002.safetensors"
    index = json.loads((base / "model.safetensors.index.json").read_text())
    save_file({**load_file(tower), "vision_tower.table.weight": torch.ones(384, 2)}, tower, {"format": "pt"})
    index["weight_map"]["vision_tower.table.weight"] = tower.name
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert embedding_size(base) == 384
    write_with_rows(base, tmp_path / "copy", NewRows(385, {384: []}, 384), {})
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["text_config"]["vocab_size"] == 385
    shapes = {name: list(tensor.shape) for name, tensor in tensors_of(tmp_path / "copy").items()}
    grown = {name for name, tensor in tensors_of(base).items() if list(tensor.shape) != shapes[name]}
    assert grown == {"language_model.model.embed_tokens.weight"}
    assert causal_lm(load_model(tmp_path / "copy", dtype=torch.float32)).get_input_embeddings().weight.shape == (
        385,
        32,
    )


def test_token_with_the_id_of_an_image_is_refused(bases, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(bases["gemma3"], base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "image_token_index": 384}))
    chosen = Recipe.model_validate({**_recipe(LORA), "model": {"base": str(base), "add_tokens": ["<a>"]}})
    with pytest.raises(InputError, match="'<a>' would get the id 384 of the model's image_token_index"):
        find_model(chosen, tmp_path)


def test_evaluation_reads_context_and_dtype_of_the_text_model(bases, tmp_path):
    """Published configurations of Gemma 3 state no context length: it is the default of the class."""
    base = tmp_path / "base"
    shutil.copytree(bases["gemma3"], base)
    config = json.loads((base / "config.json").read_text())
    assert find_subject(str(base)).context == 2048
    del config["text_config"]["max_position_embeddings"], config["dtype"]
    config["text_config"]["dtype"] = "bfloat16"
    (base / "config.json").write_text(json.dumps(config))
    assert find_subject(str(base)).context == Gemma3TextConfig().max_position_embeddings
    assert stored_dtype(base) == "bfloat16"


def test_run_that_an_earlier_version_planned_as_a_whole_class_is_refused(bases, tmp_path):
    trained = Trained(bases["gemma3"], tmp_path / "run", LORA)
    facts = trained.plan.model
    earlier = trained.plan.model_copy(update={"model": facts.model_copy(update={"carried": None})})
    with pytest.raises(InputError, match="trains Gemma3ForConditionalGeneration as a whole"):
        require_same_model(earlier, facts)
    with pytest.raises(InputError, match="use Tunesmith 0 for this run"):
        load_trained(earlier, trained.save(1))
    require_same_model(trained.plan, facts)


def _recipe(method: dict) -> dict:
    return {"name": "m", "model": {"base": "b"}, "data": {"train": ["x.jsonl"]}, "method": method}
