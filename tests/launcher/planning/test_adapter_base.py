"""A LoRA adapter as the base model of a run: merged or continued."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.training.export.test_export import LORA, Trained
from tunesmith.configs.recipe import Recipe
from tunesmith.errors import InputError, RunFault
from tunesmith.launcher.planning.adapter_base import adapter_base_choice, merge_failure, merged_directory
from tunesmith.launcher.planning.prepare_run import find_model, find_tokenizer
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.base_model.companion_files import companions
from tunesmith.modeling.base_model.facts import model_fingerprint
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.parts import causal_lm
from tunesmith.training.export import model_card


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory) -> Trained:
    return Trained(tiny_llama, tmp_path_factory.mktemp("earlier") / "run", LORA).train()


@pytest.fixture(scope="module")
def adapter(trained) -> Path:
    return trained.export(form="adapter").path


def recipe(base: Path, method: dict | None = None, **model: str) -> Recipe:
    values = {"name": "r", "model": {"base": str(base), **model}, "data": {"train": ["x.jsonl"]}}
    return Recipe.model_validate({**values, "method": method or LORA})


def test_recipe_has_to_choose(adapter, tmp_path):
    with pytest.raises(InputError) as refused:
        find_model(recipe(adapter), tmp_path)
    assert "model.adapter: merge" in str(refused.value)
    assert "model.adapter: continue" in str(refused.value)


def test_merged_base_is_the_sum_in_fp32(adapter, tiny_llama, tmp_path):
    chosen = recipe(adapter, {"kind": "full"}, adapter="merge")
    facts = find_model(chosen, tmp_path)
    assert facts.adapter is None
    assert facts.source == str(adapter)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    expected = PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload().state_dict()  # type: ignore[operator]
    merged = load_file(Path(facts.directory) / "model.safetensors")
    changed = 0
    for name, weight in merged.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected[name]), name
        changed += not torch.equal(weight, load_file(tiny_llama / "model.safetensors")[name])
    assert changed == len([name for name in load_file(adapter / "adapter_model.safetensors") if "lora_A" in name])
    assert find_tokenizer(chosen, tmp_path).encode("licence")
    (choice,) = adapter_base_choice(chosen, facts)
    assert choice.value == "merged"
    assert "fp32" in choice.reason
    assert "tokenizer: the base model's" in choice.reason
    directory = Path(facts.directory)
    written = (directory / "model.safetensors").stat().st_mtime_ns
    assert find_model(chosen, tmp_path).directory == str(directory)
    assert (directory / "model.safetensors").stat().st_mtime_ns == written  # merged once
    assert not list(directory.parent.glob("*.tmp.*"))


def test_continued_adapter_gives_the_initial_weights(adapter, trained, tiny_llama, tmp_path):
    chosen = recipe(adapter, adapter="continue")
    facts = find_model(chosen, tmp_path)
    assert facts.directory == str(tiny_llama.resolve())
    assert facts.adapter == str(adapter)
    base = causal_lm(load_model(Path(facts.directory), dtype=torch.float32))
    model = apply_method(base, chosen.method, start_from=adapter)
    weights, expected = trained_parameters(model), trained_parameters(trained.model)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert adapter_base_choice(chosen, facts)[0].value == "continued"


TEMPLATE = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{% endfor %}"


@pytest.fixture
def foreign(adapter, tmp_path) -> Path:
    """The adapter as another tool writes it, without manifest, with a chat template of its own."""
    directory = tmp_path / "foreign"
    shutil.copytree(adapter, directory)
    (directory / "manifest.json").unlink()
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def test_template_of_a_continued_adapter_is_used(foreign, tiny_llama, tmp_path):
    chosen = recipe(foreign, adapter="continue")
    facts = find_model(chosen, tmp_path)
    template = find_tokenizer(chosen, tmp_path).template
    assert template is not None
    assert template.render([{"role": "user", "content": "Why?"}]) == "[user] Why?"
    assert facts.base_directory == str(tiny_llama.resolve())
    assert (Path(facts.directory) / "model.safetensors").resolve() == (tiny_llama / "model.safetensors").resolve()
    assert facts.adapter_tokenizer is not None
    assert facts.adapter_tokenizer.base_fingerprint == model_fingerprint(tiny_llama)
    assert "chat template: the adapter's" in adapter_base_choice(chosen, facts)[0].reason
    (foreign / "chat_template.jinja").write_text(TEMPLATE.replace("[", "<"))
    assert find_model(chosen, tmp_path).fingerprint != facts.fingerprint


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "generation_config.json"])
def test_merged_copy_depends_on_all_files_that_it_gets_from_the_adapter(name, foreign, tiny_llama):
    before = merged_directory(tiny_llama, foreign)
    (foreign / "README.md").write_text("other")
    assert merged_directory(tiny_llama, foreign) == before
    (foreign / name).write_text((foreign / name).read_text() + " ")
    assert merged_directory(tiny_llama, foreign) != before


def test_files_of_two_tokenizers_are_not_mixed(foreign, tiny_llama, tmp_path):
    (foreign / "chat_template.jinja").unlink()  # an older tool has written it to tokenizer_config.json
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    (base / "merges.txt").write_text("#")
    files = companions(base, foreign)
    assert files["tokenizer_config.json"] == foreign / "tokenizer_config.json"
    assert not files.keys() & {"chat_template.jinja", "merges.txt"}


def test_tokenizer_of_another_model_is_refused(foreign, tmp_path):
    content = json.loads((foreign / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[20:22]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (foreign / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="2 tokens with another id"):
        find_model(recipe(foreign, adapter="continue"), tmp_path)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({**LORA, "lora_rank": 8}, "lora_rank is 4 in the adapter and 8 in the recipe"),
        ({**LORA, "lora_alpha": 16}, "lora_alpha"),
        ({**LORA, "use_dora": True}, "use_dora"),
        ({**LORA, "target_modules": ["lm_head"]}, "lm_head, which the adapter does not adapt"),
        ({"kind": "full"}, "method.kind is full"),
        ({**LORA, "start_from": "elsewhere"}, "two adapters"),
    ],
)
def test_recipe_that_contradicts_the_adapter_is_refused(method, message, adapter, tmp_path):
    with pytest.raises(InputError, match=message):
        find_model(recipe(adapter, method, adapter="continue"), tmp_path)


def test_model_card_names_the_adapter_that_the_run_started_from(adapter, trained, tiny_llama, tmp_path):
    def summary(chosen: Recipe, **facts: str | None) -> str:
        model = trained.plan.model.model_copy(update={"source": str(adapter), **facts})
        plan = trained.plan.model_copy(update={"recipe": chosen, "model": model})
        return model_card._summary(plan, "adapter", None)

    digest = "d" * 64
    continued = summary(recipe(adapter, adapter="continue"), adapter=str(adapter), adapter_sha256=digest)
    assert continued.startswith(f"{tiny_llama.name} (llama")
    assert f"continued from the LoRA adapter {adapter.name} (SHA-256 of its weights: {digest})" in continued
    merged = summary(recipe(adapter, adapter="merge"))
    assert f"{adapter.name} is a LoRA adapter that was merged into its own base model before" in merged
    started = summary(recipe(tiny_llama, {**LORA, "start_from": "x"}), source=str(tiny_llama), adapter=str(adapter))
    assert f"continued from the LoRA adapter {adapter.name}." in started


@pytest.mark.parametrize(
    ("what", "is_input", "where", "remedy"),
    [
        ("killed by signal 9; 8 bytes per weight", False, "adapter", "more memory; or set model.adapter: continue"),
        ("OSError: [Errno 28] No space left on device", False, "adapter", "free disk space"),
        ("RuntimeError: odd", False, "adapter", "merge it with peft"),
        (str(InputError("it is odd", where="elsewhere", remedy="mend it")), True, "elsewhere", "mend it"),
    ],
)
def test_failed_merge_says_what_to_do(what, is_input, where, remedy):
    error = merge_failure(Path("adapter"), what, is_input)
    assert isinstance(error, InputError) == is_input
    lines = str(error).splitlines()
    assert lines[0] == f"the adapter could not be merged: {what.splitlines()[0]}"
    assert lines[1].endswith(where)
    assert remedy in lines[2]
    assert len(lines) == 3


@pytest.mark.parametrize("choice", ["merge", "continue"])
def test_other_base_model_is_refused_by_its_fingerprint(choice, adapter, tiny_llama_untied, tmp_path):
    with pytest.raises(InputError, match="trained on another base model"):
        find_model(recipe(adapter, adapter=choice, adapter_base=str(tiny_llama_untied)), tmp_path)


def test_base_model_of_a_foreign_adapter_is_the_users(adapter, tiny_llama, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, foreign / name)
    config = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "no-such/model"}))
    with pytest.raises(InputError, match="no-such/model"):
        find_model(recipe(foreign, adapter="continue"), tmp_path)
    chosen = recipe(foreign, adapter="continue", adapter_base=str(tiny_llama))
    assert find_model(chosen, tmp_path).directory == str(tiny_llama.resolve())


def test_damaged_adapter_and_keys_without_an_adapter_are_refused(adapter, tiny_llama, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(adapter, damaged)
    content = bytearray((damaged / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(RunFault, match="damaged"):
        find_model(recipe(damaged, adapter="merge"), tmp_path)
    with pytest.raises(InputError, match=r"model\.adapter is for an adapter"):
        find_model(recipe(tiny_llama, adapter="merge"), tmp_path)
