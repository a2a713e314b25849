"""`plan --gpus`: GPUs that are elsewhere, by product or by memory."""

import pytest

from tunesmith.errors import InputError
from tunesmith.launcher.planning.machines import PRODUCTS, parse_machines, product_of

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "nodes", "gpus", "gib", "capability"),
    [
        ("H100", 1, 1, 80, (9, 0)),
        ("8xH100", 1, 8, 80, (9, 0)),
        ("2x8xA100-40GB", 2, 8, 40, (8, 0)),
        ("8x80GB", 1, 8, 80, (8, 0)),
        ("4 x 24GiB", 1, 4, 24, (8, 0)),
        ("1x1x48g", 1, 1, 48, (8, 0)),
        ("2xrtx4090", 1, 2, 24, (8, 9)),
    ],
)
def test_machines_are_parsed(text, nodes, gpus, gib, capability):
    machines = parse_machines(text)
    assert (machines.nodes, machines.gpus_per_node) == (nodes, gpus)
    assert machines.gpu.memory_bytes == gib * GIB > machines.gpu.free_bytes > 0.9 * gib * GIB
    assert machines.gpu.capability == capability
    hardware = machines.hardware()
    assert len(hardware.gpus) == gpus
    assert hardware.torch_has_cuda


@pytest.mark.parametrize(
    "text", ["", "8", "x8xH100", "8xfoo", "8x", "0xH100", "8x0GB", "1x2x3xH100", "-1xH100", "8x80TB"]
)
def test_what_is_not_understood_is_an_error_that_names_the_form(text):
    with pytest.raises(InputError) as caught:
        parse_machines(text)
    assert f"--gpus {text}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-32GB", "V100"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX3090"),
        ("NVIDIA RTX A6000", "A6000"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_names_of_drivers_are_recognized(name, product):
    assert product_of(name) == (PRODUCTS[product] if product else None)
