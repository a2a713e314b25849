"""Checkpoints as adapters: the bytes of the weights, a whole directory or none, and nothing that is no adapter."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tunesmith.errors import RunFault
from tunesmith.serving.jobs import adapter_files
from tunesmith.serving.jobs.adapter_files import _rename_tensors, same_tensors

NAMES = ["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
         "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"]  # fmt: skip


def tensors(seed=0):
    random = np.random.default_rng(seed)
    return {name: random.normal(size=(4, 8 + n)).astype(np.float32) for n, name in enumerate(NAMES)}


def test_tensors_keep_their_bytes_under_pefts_names(tmp_path):
    save_file(tensors(), tmp_path / "checkpoint")
    _rename_tensors(tmp_path / "checkpoint", tmp_path / "adapter")
    found = load_file(tmp_path / "adapter")
    assert set(found) == {name.replace(".default", "") for name in NAMES}
    for name, values in tensors().items():
        assert found[name.replace(".default", "")].tobytes() == values.tobytes()


def test_weights_that_are_no_adapter_are_refused(tmp_path):
    save_file({"model.embed_tokens.weight": np.zeros((2, 2), np.float32)}, tmp_path / "checkpoint")
    with pytest.raises(RunFault, match="of no adapter"):
        _rename_tensors(tmp_path / "checkpoint", tmp_path / "adapter")


@pytest.mark.parametrize("change", ["nothing", "order", "a bit", "a name", "a shape"])
def test_two_adapters_are_compared_by_every_byte(tmp_path, change):
    values = tensors()
    if change == "order":  # safetensors orders by name, so the names' order decides
        values = {**{"z" + name: value for name, value in values.items()}}
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
    assert same_tensors(tmp_path / "one", tmp_path / "two") == (change in ("nothing", "order"))
