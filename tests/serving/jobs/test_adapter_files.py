"""Conversion of checkpoints to adapters: unchanged weights, complete directories, adapter tensors only."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tunesmith.errors import RunFault
from tunesmith.rundir.commit import seal
from tunesmith.rundir.paths import RunDir
from tunesmith.serving.jobs import adapter_files
from tunesmith.serving.jobs.adapter_files import _rename_tensors, same_tensors, write_served_adapter

NAMES = ["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
         "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"]  # fmt: skip


def tensors(seed=0):
    random = np.random.default_rng(seed)
    return {name: random.normal(size=(4, 8 + n)).astype(np.float32) for n, name in enumerate(NAMES)}


def test_tensors_are_renamed_without_changing_their_bytes(tmp_path):
    save_file(tensors(), tmp_path / "checkpoint")
    _rename_tensors(tmp_path / "checkpoint", tmp_path / "adapter")
    renamed = load_file(tmp_path / "adapter")
    assert set(renamed) == {name.replace(".default", "") for name in NAMES}
    for name, values in tensors().items():
        assert renamed[name.replace(".default", "")].tobytes() == values.tobytes()


def test_a_checkpoint_with_other_weights_is_rejected(tmp_path):
    save_file({"model.embed_tokens.weight": np.zeros((2, 2), np.float32)}, tmp_path / "checkpoint")
    with pytest.raises(RunFault, match="not an adapter tensor"):
        _rename_tensors(tmp_path / "checkpoint", tmp_path / "adapter")


def test_a_damaged_checkpoint_is_not_converted(tmp_path):
    checkpoint = tmp_path / "step-00000004"
    checkpoint.mkdir()
    save_file(tensors(), checkpoint / adapter_files.CHECKPOINT_WEIGHTS)
    seal(checkpoint)
    with open(checkpoint / adapter_files.CHECKPOINT_WEIGHTS, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00")
    with pytest.raises(RunFault, match=r"the checkpoint is damaged: model\.safetensors does not match its hash"):
        write_served_adapter(RunDir(tmp_path), checkpoint, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("change", ["nothing", "a bit", "a name", "a shape"])
def test_adapters_are_compared_bit_for_bit(tmp_path, change):
    values = tensors()
    other = dict(values)
    first = next(iter(other))
    if change == "a bit":
        other[first] = np.frombuffer(bytes([values[first].tobytes()[0] ^ 1]) + values[first].tobytes()[1:], np.float32)
        other[first] = other[first].reshape(values[first].shape)
    if change == "a name":
        other["x"] = other.pop(first)
    if change == "a shape":
        other[first] = values[first].reshape(-1)
    for place, content in (("one", values), ("two", other)):
        (tmp_path / place).mkdir()
        save_file(content, tmp_path / place / adapter_files.WEIGHTS)
    assert same_tensors(tmp_path / "one", tmp_path / "two") == (change == "nothing")
