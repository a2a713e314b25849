"""Damaged exports and adapters are refused by everything that uses them. Files that users edit are not covered."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.data.index.test_integrity import flip, truncate
from tests.serving.engine.conftest import make_adapter
from tunesmith.configs.recipe import Recipe
from tunesmith.errors import InputError, RunFault, TunesmithError
from tunesmith.evaluation.subject import find_subject
from tunesmith.inference.adapters import Adapters
from tunesmith.inference.rendering import tokenizer_of
from tunesmith.inference.types import RequestRejected
from tunesmith.launcher.planning.prepare_run import find_model
from tunesmith.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_SETTINGS,
    MANIFEST,
    fault_of,
    require_undamaged,
    settings_digest,
)
from tunesmith.modeling.adapters.earlier_adapter import copy_adapter
from tunesmith.modeling.loading.load import load_model
from tunesmith.rundir.commit import seal

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def exported(tiny_llama, tmp_path_factory) -> Path:
    """An adapter with the files and the manifest of an export."""
    directory = make_adapter(tiny_llama, tmp_path_factory.mktemp("run") / "export", 1)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(tiny_llama / name, directory / name)
    (directory / "README.md").write_text("# A model")
    (directory / "LICENSE.txt").write_text("Free.")
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (directory.parent / "plan.json").touch()
    facts: dict[str, Any] = {ADAPTER_SETTINGS: {"sha256": settings_digest(directory / ADAPTER_CONFIG)}}
    seal(directory, step=7, **facts)
    return directory


@pytest.fixture
def export(exported, tmp_path) -> Path:
    """A private copy."""
    return Path(shutil.copytree(exported.parent, tmp_path / "run")) / "export"


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip, truncate, remove])
@pytest.mark.parametrize(
    "name", [WEIGHTS, ADAPTER_CONFIG, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", MANIFEST]
)
def test_damaged_export_is_named_with_what_to_do(export, name, damage):
    require_undamaged(export)
    damage(export / name)
    if (name, damage) == (MANIFEST, remove):
        assert fault_of(export) is None  # what the error suggests for files that were changed on purpose
        return
    with pytest.raises(RunFault, match=f"the model's files are damaged: {name}") as caught:
        require_undamaged(export)
    assert caught.value.where == str(export)
    step = "" if name == MANIFEST else " --step 7"  # which the manifest has
    assert f"tunesmith export {export.parent}{step}" in str(caught.value.remedy)
    assert "delete manifest.json" in str(caught.value.remedy)


def test_files_that_users_edit_do_not_make_an_export_unusable(export):
    for name in ("README.md", "LICENSE.txt", "generation_config.json"):
        (export / name).write_text("{}")
    (export / "README.md").unlink()
    (export / "notes.txt").write_text("new")
    config = json.loads((export / ADAPTER_CONFIG).read_text())
    (export / ADAPTER_CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "/elsewhere"}))
    assert fault_of(export) is None
    (export / ADAPTER_CONFIG).write_text(json.dumps({**config, "lora_alpha": 9}))
    assert str(fault_of(export)).startswith(ADAPTER_CONFIG)


def test_manifests_of_earlier_versions_and_of_other_programs(export):
    (export / MANIFEST).unlink()
    seal(export, step=7)  # without a digest of the adapter's settings
    config = json.loads((export / ADAPTER_CONFIG).read_text())
    (export / ADAPTER_CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "/elsewhere"}))
    assert fault_of(export) is None
    for other in ({}, [], "peft_type", {"base_model_name_or_path": "/elsewhere"}):
        (export / ADAPTER_CONFIG).write_text(json.dumps(other))
        assert str(fault_of(export)).startswith(ADAPTER_CONFIG), "it no longer describes an adapter"
    (export / ADAPTER_CONFIG).write_text(json.dumps(config))
    flip(export / WEIGHTS)
    assert str(fault_of(export)).startswith(WEIGHTS)
    for manifest in (
        {"files": ["a", "b"], "name": "something else"},
        {"schema": 2, "files": {"a.bin": "0123"}},
        {"schema": 2, "files": ["a.bin"], "made_by": "another program"},
        {"files": ["a.bin"], "sha256": ["0123"]},
    ):
        (export / MANIFEST).write_text(json.dumps(manifest))
        assert fault_of(export) is None, manifest


@pytest.mark.parametrize("key", ["files", "sha256", "schema", "made_by", "tunesmith_version", "step"])
def test_a_damaged_key_does_not_make_a_manifest_another_program_s(export, key):
    (export / MANIFEST).unlink()
    seal(export, made_by="tunesmith export", tunesmith_version="0.2.0", step=7)
    assert fault_of(export) is None
    manifest = json.loads((export / MANIFEST).read_text())
    manifest[f"x{key[1:]}"] = manifest.pop(key)
    (export / MANIFEST).write_text(json.dumps(manifest))
    assert "does not match its hash" in str(fault_of(export))


def test_a_file_is_hashed_once_until_it_changes(export, monkeypatch):
    require_undamaged(export)
    monkeypatch.setattr("tunesmith.model_files._digest_of", lambda path: pytest.fail(f"{path} was read again"))
    require_undamaged(export)
    monkeypatch.undo()
    flip(export / WEIGHTS)
    assert fault_of(export) is not None


def serve(adapter: Path, base: Path) -> None:
    Adapters(load_model(base, dtype=torch.float32), torch.float32, torch.device("cpu")).use(str(adapter))


def evaluate_or_chat(adapter: Path, base: Path) -> None:
    find_subject(str(adapter)).load()


def load_or_merge(adapter: Path, base: Path) -> None:
    load_model(adapter, dtype=torch.float32)


def plan_to_continue(adapter: Path, base: Path) -> None:
    method = {"kind": "lora", "lora_rank": 4, "lora_alpha": 8, "start_from": str(adapter)}
    data = {"train": ["a.jsonl"], "max_seq_len": 64}
    find_model(Recipe(name="t", model={"base": str(base)}, task="chat", method=method, data=data), adapter)  # type: ignore[arg-type]


def continue_from(adapter: Path, base: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    copy_adapter(get_peft_model(load_model(base, dtype=torch.float32), config), adapter)  # type: ignore[arg-type]


USES = [serve, evaluate_or_chat, load_or_merge, plan_to_continue, continue_from]


@pytest.mark.parametrize("use", USES)
def test_every_use_of_a_damaged_export_is_refused(export, tiny_llama, use: Callable[[Path, Path], None]):
    use(export, tiny_llama)
    content = (export / WEIGHTS).read_bytes()
    (export / WEIGHTS).write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])  # still a finite weight
    with pytest.raises(RunFault, match=f"{WEIGHTS} does not match its hash"):
        use(export, tiny_llama)


@pytest.mark.parametrize("use", [serve, evaluate_or_chat, load_or_merge, continue_from])
def test_damaged_adapter_without_a_manifest_is_named(exported, tiny_llama, tmp_path, use: Callable[[Path, Path], None]):
    adapter = Path(shutil.copytree(exported, tmp_path / "adapter"))
    (adapter / MANIFEST).unlink()
    use(adapter, tiny_llama)
    weights = load_file(adapter / WEIGHTS)
    name = next(iter(weights))
    weights[name][0, 0] = float("inf")
    save_file(weights, adapter / WEIGHTS)
    with pytest.raises(InputError, match=r"contains values that are not finite") as caught:
        use(adapter, tiny_llama)
    assert name.rpartition(".")[0] in caught.value.what
    truncate(adapter / WEIGHTS)
    with pytest.raises(TunesmithError, match="cannot"):
        use(adapter, tiny_llama)


def test_damaged_chat_template_is_refused_when_prompts_are_rendered(export):
    flip(export / WEIGHTS)
    assert tokenizer_of(export)  # the weights are verified where they are loaded
    flip(export / "chat_template.jinja")
    (export / "tokenizer.json").touch()  # otherwise the tokenizer in memory is used
    with pytest.raises(RequestRejected, match=r"chat_template\.jinja does not match its hash"):
        tokenizer_of(export)
