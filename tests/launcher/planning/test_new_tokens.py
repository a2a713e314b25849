"""The plan of a run that adds tokens: a copy of the base model in the cache, and what is trained."""

import json
import shutil
from pathlib import Path

import pytest

from tunesmith.configs.recipe import Recipe
from tunesmith.errors import InputError
from tunesmith.launcher.planning.memory import footprint
from tunesmith.launcher.planning.new_tokens import new_tokens_choice
from tunesmith.launcher.planning.prepare_run import find_model, find_tokenizer

TOKENS = ["<a>", {"token": "<b>", "description": "the letter b"}]


@pytest.fixture
def base(tmp_path, tiny_llama, monkeypatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny_llama, tmp_path / "base"))


def recipe(base: Path, tokens: list = TOKENS, method: dict | None = None, **more) -> Recipe:
    values = {"name": "x", "model": {"base": str(base), "add_tokens": tokens}, "data": {"train": ["rows.jsonl"]}}
    return Recipe.model_validate({**values, "method": method or {"kind": "lora", "lora_rank": 4}, **more})


def test_facts_count_the_rows_and_name_the_base(base):
    plain, facts = find_model(recipe(base, []), base), find_model(recipe(base), base)
    assert (plain.added, plain.new_rows, plain.base_directory) == (None, [], str(base))
    assert facts.added is not None
    assert (facts.added.tokens, facts.new_rows) == (["<a>", "<b>"], [384, 385])
    assert (facts.added.base_directory, facts.base_directory) == (str(base), str(base))
    assert (facts.added.base_vocab_size, facts.vocab_size) == (384, 386)
    assert facts.num_params == plain.num_params + 2 * 32
    assert facts.num_trained_params == plain.num_trained_params + 2 * 32
    assert facts.fingerprint != plain.fingerprint
    assert find_model(recipe(base, method={"kind": "full"}), base).num_trained_params == facts.num_params


def test_untied_head_has_new_rows_of_its_own(base, tiny_llama_untied):
    plain, facts = (find_model(recipe(tiny_llama_untied, tokens), base) for tokens in ([], TOKENS))
    assert facts.num_trained_params == plain.num_trained_params + 2 * 2 * 32


def test_tokenizer_of_data_check_has_the_tokens(base):
    tokenizer = find_tokenizer(recipe(base), base)
    assert tokenizer.encode("<b><a>") == [385, 384]
    assert tokenizer.num_embeddings == 386


def test_copy_is_written_once_and_again_if_a_link_is_broken(base):
    directory = Path(find_model(recipe(base), base).directory)
    written = (directory / "model.safetensors").stat().st_mtime_ns
    again = find_model(recipe(base), base)
    assert (Path(again.directory), (directory / "model.safetensors").stat().st_mtime_ns) == (directory, written)
    (directory / "generation_config.json").unlink()
    (directory / "generation_config.json").symlink_to(base / "nowhere.json")
    assert find_model(recipe(base), base).fingerprint == again.fingerprint
    assert (directory / "generation_config.json").is_file()
    assert not list(directory.parent.glob("*.tmp.*"))


def test_other_tokens_and_other_weights_have_another_copy(base):
    first = find_model(recipe(base), base)
    assert find_model(recipe(base, ["<a>", "<c>"]), base).fingerprint != first.fingerprint
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    changed = find_model(recipe(base), base)
    assert changed.directory != first.directory
    assert json.loads((Path(changed.directory) / "config.json").read_text())["rms_norm_eps"] == 1e-3


def test_tokens_without_a_row_get_one_and_free_rows_are_used(base):
    """A tokenizer larger than the embedding, and one that is smaller."""
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    for size, expected in ((380, [380, 381, 382, 383, 384]), (400, [384])):
        embedding = weights["model.embed_tokens.weight"][:380].repeat(2, 1)[:size].contiguous()
        save_file({**weights, "model.embed_tokens.weight": embedding}, base / "model.safetensors")
        (base / "config.json").write_text(json.dumps({**config, "vocab_size": size}))
        facts = find_model(recipe(base, ["<a>"]), base)
        assert facts.new_rows == expected
        assert facts.vocab_size == max(size, 385)
        (choice,) = new_tokens_choice(recipe(base, ["<a>"]), facts)
        reason = "4 tokens of the tokenizer had no row" if size == 380 else "free rows are used"
        assert reason in choice.reason


def test_plan_says_how_tokens_are_initialized_and_trained(base):
    chosen = recipe(base)
    facts = find_model(chosen, base)
    (choice,) = new_tokens_choice(chosen, facts)
    assert choice.value == 2
    for part in ("grown by 2 rows to 386", "1 row from descriptions", "1 row from the mean", "only these rows"):
        assert part in choice.reason
    full = recipe(base, method={"kind": "full"})
    (choice,) = new_tokens_choice(full, find_model(full, base))
    assert "only these rows" not in choice.reason
    assert new_tokens_choice(chosen, find_model(recipe(base, []), base)) == []


def test_memory_includes_the_copy_of_the_head(base):
    chosen = recipe(base)
    facts = find_model(chosen, base)
    without = facts.model_copy(update={"added": None})
    difference = footprint(chosen, facts, False, "cpu").weights - footprint(chosen, without, False, "cpu").weights
    assert difference == 4 * 386 * 32


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"method": {"kind": "last_layers"}}, "last_layers freezes the embedding"),
        ({"task": "classification"}, "causal language models only"),
        ({"method": {"kind": "lora", "target_modules": ["q_proj", "lm_head"]}}, "new rows of lm_head are trained"),
        ({"tokens": ["<a>", "<a>"]}, "listed twice"),
    ],
)
def test_what_is_not_supported_is_refused_before_a_copy_is_written(base, tmp_path, changes, what):
    with pytest.raises(InputError, match=what):
        find_model(recipe(base, **changes), base)
    assert not (tmp_path / "cache" / "models").exists()


def test_offloading_is_not_refused_before_the_zero_stage_is_known(base):
    chosen = recipe(base, parallelism={"zero_stage": 3, "offload_optimizer": "cpu", "offload_params": "cpu"})
    assert find_model(chosen, base).new_rows == [384, 385]
