import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tunesmith.training.checkpoint.tensor_file import TensorFile, write_tensors


@given(shapes=st.dictionaries(st.text(min_size=1, max_size=20), st.lists(st.integers(0, 5), max_size=3), max_size=6))
def test_the_safetensors_package_reads_a_streamed_file(shapes, tmp_path_factory):
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    shapes.pop("__metadata__", None)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    write_tensors(path, {name: tuple(t.shape) for name, t in tensors.items()}, iter(tensors.items()))
    read, lazy = load_file(path), TensorFile(path)
    assert read.keys() == tensors.keys() == set(lazy)
    assert all(torch.equal(read[name], tensor) and torch.equal(lazy[name], tensor) for name, tensor in tensors.items())


def test_views_and_bf16_are_written_as_contiguous_fp32(tmp_path):
    tensor = torch.randn(4, 6).to(torch.bfloat16).t()
    write_tensors(tmp_path / "x", {"w": (6, 4)}, [("w", tensor)])
    assert torch.equal(TensorFile(tmp_path / "x")["w"], tensor.float())


@pytest.mark.parametrize("tensors", [[], [("w", torch.ones(3))], [("v", torch.ones(2))]])
def test_a_stream_that_does_not_match_the_shapes_is_rejected(tmp_path, tensors):
    with pytest.raises(ValueError, match=r"(missing|unexpected) tensor"):
        write_tensors(tmp_path / "x", {"w": (2,)}, tensors)


def test_a_missing_name_is_a_key_error(tmp_path):
    write_tensors(tmp_path / "x", {"w": (2,)}, [("w", torch.ones(2))])
    with pytest.raises(KeyError, match="other"):
        TensorFile(tmp_path / "x")["other"]
