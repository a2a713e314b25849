"""Resolving the base model by directory, GGUF file and hub id, without importing torch."""

import os
import shutil
import subprocess
import sys

import pytest

from tunesmith.errors import InputError
from tunesmith.modeling.base_model.source import resolve_model


def test_paths_are_resolved_relative_to_the_recipe_first(tiny_llama, tmp_path, monkeypatch):
    recipes, here = tmp_path / "recipes", tmp_path / "here"
    for parent in (recipes, here):
        shutil.copytree(tiny_llama, parent / "models" / "base")
    monkeypatch.chdir(here)
    resolved = resolve_model("models/base", None, recipes, cache=tmp_path / "cache")
    assert resolved == (recipes / "models" / "base").resolve()
    shutil.rmtree(recipes / "models")
    assert resolve_model("models/base", None, recipes, cache=tmp_path / "cache") == (here / "models" / "base").resolve()
    assert resolve_model(str(tiny_llama), None, recipes, cache=tmp_path / "cache") == tiny_llama.resolve()


@pytest.mark.parametrize("base", ["./nowhere", "/nowhere/model", "a/b/c", "nowhere.gguf"])
def test_a_missing_path_lists_the_tried_locations(base, tmp_path):
    with pytest.raises(InputError, match="does not exist") as caught:
        resolve_model(base, None, tmp_path, cache=tmp_path)
    assert str((tmp_path / base).resolve()) in str(caught.value)


def test_a_hub_id_without_network_suggests_a_remedy(tmp_path):
    script = (
        "import sys; from pathlib import Path; from tunesmith.modeling.base_model.source import resolve_model\n"
        "try: resolve_model('organisation/name', None, Path(sys.argv[1]), cache=Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    run = [sys.executable, "-c", script, str(tmp_path)]
    output = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.startswith("InputError")
    assert "HF_HUB_OFFLINE is set" in output
    assert str(tmp_path / "organisation") in output
    assert "hf download organisation/name" in output


def test_a_cached_hub_id_resolves_offline(tiny_llama, tmp_path):
    """The layout of the hub's cache: a reference to a commit, and its snapshot."""
    repository = tmp_path / "hub" / "hub" / "models--organisation--name"
    shutil.copytree(tiny_llama, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    script = (
        "import sys; from pathlib import Path; from tunesmith.modeling.base_model.source import resolve_model\n"
        "print(resolve_model('organisation/name', None, Path('.'), cache=Path('.')))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    run = [sys.executable, "-c", script]
    output = subprocess.run(run, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert output.strip() == str(repository / "snapshots" / ("a" * 40))


def test_other_directories_and_files_are_rejected(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"without config\.json"):
        resolve_model("empty", None, tmp_path, cache=tmp_path)
    (tmp_path / "empty" / "some.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"without config\.json") as caught:
        resolve_model("empty", None, tmp_path, cache=tmp_path)
    assert "some.gguf" in str(caught.value)
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="adapter"):
        resolve_model("empty", None, tmp_path, cache=tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="not a GGUF file"):
        resolve_model("weights.bin", None, tmp_path, cache=tmp_path)


def test_a_damaged_gguf_file_is_rejected_and_leaves_nothing(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGML" + bytes(100))
    with pytest.raises(InputError, match="this is not a GGUF file"):
        resolve_model("broken.gguf", None, tmp_path, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("models/*"))


def test_torch_is_never_imported(tiny_llama, tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from tunesmith.modeling.base_model.source import resolve_model, model_facts\n"
        "from tunesmith.configs.sections.method import Lora\n"
        "path = resolve_model(sys.argv[1], None, Path('.'), cache=Path(sys.argv[2]))\n"
        "facts = model_facts(path, sys.argv[1], Lora(kind='lora'))\n"
        "try: resolve_model('organisation/name', None, Path('.'), cache=Path(sys.argv[2]))\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    run = [sys.executable, "-c", script, str(tiny_llama), str(tmp_path)]
    output = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.split("\n")[:2] == ["InputError", "[]"]
