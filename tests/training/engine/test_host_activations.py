"""Activations that are kept on the host: bit-identical gradients, and weights are not copied."""

import pytest
import torch

from tunesmith.configs.sections.method import Full, Lora
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.parts import recompute_activations
from tunesmith.modeling.patching.fast import install_kernels
from tunesmith.training.engine import host_activations
from tunesmith.training.engine.host_activations import keep_activations_on_host

LENGTHS = [40, 9, 60]


def gradients(directory, method, *, on_host: bool, recompute: bool) -> dict[str, torch.Tensor]:
    model = load_model(directory, dtype=torch.float32)
    if recompute:
        recompute_activations(model)
    adapted = apply_method(model, method)
    for name, parameter in trained_parameters(adapted).items():
        if ".lora_B" in name:  # zero at first, so that A would have no gradient
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    loss = CausalLoss(adapted)
    install_kernels(adapted, loss.head_loss.kernels, device="cpu", compute_dtype=None)
    if on_host:
        keep_activations_on_host(loss, device_type="cpu")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, model.config.vocab_size, (sum(LENGTHS),), generator=generator)
    labels = torch.cat([torch.cat([part[1:], torch.tensor([-100])]) for part in tokens.split(LENGTHS)])
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    loss.train()
    loss(tokens, labels, positions, LENGTHS).loss_sum.backward()
    return {name: parameter.grad for name, parameter in trained_parameters(adapted).items()}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("method", [Full(kind="full"), Lora(kind="lora", lora_rank=4)], ids=["full", "lora"])
def test_gradients_are_bit_identical(tiny_llama, monkeypatch, method, recompute):
    monkeypatch.setattr(host_activations, "MIN_BYTES", 64)
    moved = []
    to_host = host_activations._HostStore.to_host

    def counted(store, tensor):
        saved = to_host(store, tensor)
        if saved is not tensor:
            assert tensor.untyped_storage().data_ptr() not in store._weights
            moved.append(tensor.nbytes)
        return saved

    monkeypatch.setattr(host_activations._HostStore, "to_host", counted)
    expected = gradients(tiny_llama, method, on_host=False, recompute=recompute)
    assert not moved
    actual = gradients(tiny_llama, method, on_host=True, recompute=recompute)
    assert sum(moved) > 0
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert torch.equal(actual[name], gradient), name


def test_weights_small_tensors_and_other_devices_stay():
    module = torch.nn.Linear(300, 300)
    store = host_activations._HostStore(module, "cpu")
    store.note_weights()
    small, large = torch.ones(8), torch.ones(300, 300)
    assert store.to_host(small) is small
    transposed = module.weight.detach().t()
    assert store.to_host(transposed) is transposed
    device, host = store.to_host(large)
    large.zero_()  # what is saved does not change with the original
    assert (store.to_device((device, host)) == 1).all()
    elsewhere = host_activations._HostStore(module, "cuda")
    assert elsewhere.to_host(large) is large


def test_an_evaluation_saves_nothing(monkeypatch):
    module = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.ReLU())
    keep_activations_on_host(module, device_type="cpu")
    monkeypatch.setattr(host_activations._HostStore, "to_host", lambda store, tensor: pytest.fail("saved"))
    module.eval()
    module(torch.ones(300, 300, requires_grad=True))
    with torch.no_grad():
        module.train()(torch.ones(300, 300))
