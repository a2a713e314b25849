"""`tunesmith convert`: weights in pickles, read in a restricted process."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tunesmith.cli.main import app
from tunesmith.errors import InputError, RunFault
from tunesmith.modeling.base_model import pickle_files
from tunesmith.modeling.base_model.pickle_files import convert_pickles
from tunesmith.modeling.base_model.weight_files import weight_shapes
from tunesmith.modeling.loading.load import load_model


@pytest.fixture
def source(tiny_llama, tmp_path) -> Path:
    """The tiny LLaMA as it was published before safetensors: two files, with the tied head as a second name."""
    directory = tmp_path / "published"
    shutil.copytree(tiny_llama, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(tiny_llama / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    parts = [
        {name: tensor for name, tensor in tensors.items() if ("layers" in name) == inside} for inside in (True, False)
    ]
    located = {}
    for number, part in enumerate(parts, start=1):
        name = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save(part, directory / name)
        located |= dict.fromkeys(part, name)
    (directory / pickle_files.PICKLE_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": located}))
    (directory / "training_args.bin").write_bytes(pickle.dumps({"unused": 1}))
    return directory


class Malicious:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_converted_model_is_equal_bit_by_bit_and_loads(source, tiny_llama, tmp_path):
    with pytest.raises(InputError, match="a pickle") as refused:
        weight_shapes(source)
    assert f"tunesmith convert {source} " in str(refused.value)

    target = tmp_path / "converted"
    result = CliRunner().invoke(app, ["convert", str(source), str(target), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["dropped"] == ["lm_head.weight"]
    assert sorted(path.name for path in target.glob("*model*")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert not list(target.glob("*.bin"))
    assert (target / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    expected, converted = load_model(tiny_llama, dtype=torch.float32), load_model(target, dtype=torch.float32)
    weights = converted.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in expected.state_dict().items())
    assert report["num_tensors"] == len(weight_shapes(target))


def test_shared_views_and_values_that_are_not_numbers_are_stored_for_each_name(source, tmp_path):
    for path in source.glob("pytorch_model*"):
        path.unlink()
    whole = torch.randn(4, 6)
    tensors = {"a": whole[:2], "b": whole.t(), "c": torch.tensor([float("nan"), 1.0]), "d": torch.arange(3).bfloat16()}
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": False}
    (source / "config.json").write_text(json.dumps(config))
    torch.save(tensors | {"embed_tokens.weight": whole, "lm_head.weight": whole}, source / "pytorch_model.bin")
    assert convert_pickles(source, tmp_path / "to")["dropped"] == []  # config.json does not tie them
    stored = load_file(tmp_path / "to" / "model.safetensors")
    assert torch.equal(stored["a"], whole[:2])
    assert torch.equal(stored["b"], whole.t())
    assert torch.equal(stored["c"], tensors["c"]) is False  # NaN
    assert torch.equal(stored["c"].view(torch.int32), tensors["c"].view(torch.int32))
    assert stored["d"].dtype == torch.bfloat16
    assert torch.equal(stored["lm_head.weight"], stored["embed_tokens.weight"])


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_malicious_pickle_does_not_run(kind, source, tmp_path):
    path = source / "pytorch_model-00001-of-00002.bin"
    content = {"model.norm.weight": torch.ones(2), "payload": Malicious(tmp_path / "ran")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content["payload"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(InputError, match="damaged, or contains more than tensors"):
        convert_pickles(source, tmp_path / "to")
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("to*"))


def test_file_of_other_objects_is_refused(source, tmp_path):
    torch.save({"state_dict": {"w": torch.ones(1)}, "step": 3}, source / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(InputError, match="not a dictionary of tensors"):
        convert_pickles(source, tmp_path / "to")


def test_interrupted_conversion_leaves_no_target(source, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pickle_files, "_copy_others", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_pickles(source, tmp_path / "to")
    assert not list(tmp_path.glob("to*"))
    monkeypatch.undo()

    leftover = tmp_path / "to.tmp.999999999"  # of a conversion that was killed
    leftover.mkdir()
    monkeypatch.setattr(pickle_files, "_MODULE", "tunesmith.no_such_module")
    with pytest.raises(RunFault, match="no_such_module"):
        convert_pickles(source, tmp_path / "to")
    assert not list(tmp_path.glob("to*"))


def test_existing_target_and_directories_without_weights_are_refused(source, tiny_llama, tmp_path):
    with pytest.raises(InputError, match="exists"):
        convert_pickles(source, tmp_path)
    with pytest.raises(InputError, match=r"no \.bin weights"):
        convert_pickles(tiny_llama, tmp_path / "to")
    with pytest.raises(InputError, match="not a model directory"):
        convert_pickles(tmp_path / "nothing", tmp_path / "to")


RESTRICTED = """
import json, os, socket, subprocess, sys, threading
from pathlib import Path
from tunesmith.modeling.loading.restrictions import restrict
inside, outside = Path(sys.argv[1]), Path(sys.argv[2])
in_force = restrict(inside, memory_bytes=4 << 30, file_bytes=1 << 20, cpu_s=60)
def fails(call):
    try:
        call()
    except (OSError, MemoryError):
        return True
    return False
(inside / "file").write_text("allowed")
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
failed = {
    "network": fails(lambda: socket.socket()),
    "programs": fails(lambda: subprocess.run(["/bin/true"])) and fails(os.fork),
    "writes": all(fails(c) for c in (
        lambda: (outside / "new").write_text("x"), lambda: (outside / "old").unlink(),
        lambda: open(outside / "old", "a"), lambda: os.rename(outside / "old", inside / "old"))),
    "resources": fails(lambda: bytearray(8 << 30)),
}
print(json.dumps([in_force, failed]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp and Landlock are Linux's")
def test_restrictions_that_are_reported_hold(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "old").write_text("kept")
    command = [sys.executable, "-c", RESTRICTED, str(tmp_path / "inside"), str(tmp_path / "outside")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    in_force, failed = json.loads(ended.stdout)
    assert in_force["network"]
    assert in_force["programs"]
    assert in_force["resources"]
    assert {name for name, holds in in_force.items() if holds} <= {name for name, holds in failed.items() if holds}
    assert (tmp_path / "outside" / "old").read_text() == "kept" or not in_force["writes"]
