"""The router loss of every task whose models may have experts is transformers' own; the others have no such models."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from tests.conftest import make_tokenizer
from tests.modeling.moe_models import make_moe
from tunesmith.configs.sections.method import Full
from tunesmith.configs.sections.objectives import Kto, Preference
from tunesmith.configs.sections.optimization import Optimization
from tunesmith.configs.tasks import TASKS
from tunesmith.data.index.loader import MicroBatch, StepBatch
from tunesmith.errors import InputError
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.base_model.facts import model_facts
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.kto import KtoLoss
from tunesmith.modeling.losses.preference import PreferenceLoss
from tunesmith.training.distributed.ranks import own_rank
from tunesmith.training.engine.plain import PlainEngine

COEFFICIENT = 0.5
LOSSES = {
    "chat": CausalLoss,
    "completion": CausalLoss,
    "text": CausalLoss,
    "preference": lambda model: PreferenceLoss(model, Preference()),
    "kto": lambda model: KtoLoss(model, Kto()),
}
WITHOUT_EXPERTS = ("classification", "seq2seq")


def documents():
    """Four documents, or two pairs; the last token of each is not supervised (KTO's label)."""
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randint(3, 97, (length,), generator=generator) for length in (9, 4, 13, 6)]
    for number, row in enumerate(rows):
        row[-1] = number % 2
    return rows


def micro_batch(rows):
    labels = [torch.cat([row[1:-1], torch.tensor([-100, -100])]) for row in rows]
    return MicroBatch(
        tokens=torch.cat(rows).numpy(),
        labels=torch.cat(labels).numpy(),
        positions=np.concatenate([np.arange(len(row)) for row in rows]),
        lengths=[len(row) for row in rows],
        num_supervised=sum(len(row) - 2 for row in rows),
        reference=np.linspace(-30, -20, len(rows), dtype=np.float32),
    )


def step_batch(task, accumulation):
    rows = documents()
    size = len(rows) // accumulation
    batches = [micro_batch(rows[start : start + size]) for start in range(0, len(rows), size)]
    if not TASKS[task].may_need_reference:
        batches = [replace(batch, reference=None) for batch in batches]
    tokens, supervised = sum(map(len, rows)), sum(batch.num_supervised for batch in batches)
    return StepBatch(
        step=1, micro_batches=batches, samples=[0, 1, 2, 3], rows=[0, 1, 2, 3], num_tokens=tokens,
        supervised_tokens=supervised, global_num_tokens=tokens, global_supervised_tokens=supervised,
        global_targets=4, epoch=1.0, global_num_samples=4, unrelated=batches if task == "kto" else None,
    )  # fmt: skip


def gradients(task, scope, accumulation, coefficient) -> tuple[float, dict[str, Any]]:
    """The router loss of a step, and the gradients of its whole loss."""
    options = Optimization.model_validate({"router_loss": {"coefficient": coefficient, "scope": scope}})
    model = apply_method(make_moe("Mixtral"), Full(kind="full"))
    engine = PlainEngine(LOSSES[task](model), trained_parameters(model), options, own_rank(), device="cpu")
    routing = engine.train_batch(step_batch(task, accumulation)).routing
    assert routing is not None
    return routing.router_loss, {name: weight.grad for name, weight in engine.parameters.items()}


@pytest.fixture(scope="module")
def expected():
    """transformers' router loss of the padded rows, and its gradients."""
    model = make_moe("Mixtral")
    rows = documents()
    tokens = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    loss = model(input_ids=tokens, attention_mask=mask, output_router_logits=True).aux_loss
    (COEFFICIENT * loss).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return float(loss.detach()), gradients  # the head has none


@pytest.mark.parametrize("task", sorted(LOSSES.keys() - {"completion", "text"}))
@pytest.mark.parametrize(("scope", "accumulation"), [("micro_batch", 1), ("global", 2)])
def test_the_router_loss_is_part_of_the_loss(expected, task, scope, accumulation):
    value, with_router = gradients(task, scope, accumulation, COEFFICIENT)
    assert value == pytest.approx(expected[0], abs=1e-5)
    _, without = gradients(task, scope, accumulation, 0.0)
    for name, gradient in expected[1].items():
        own, limit = with_router[name], 1e-6 * float(with_router[name].abs().max())
        other = without[name] if without[name] is not None else torch.zeros_like(own)
        torch.testing.assert_close(own - other, gradient, rtol=1e-3, atol=max(1e-6, limit), msg=name)
    routers = [name for name in expected[1] if ".gate." in name]
    assert routers
    assert all(float(expected[1][name].abs().max()) > 1e-3 for name in routers), "far above the limits"


@pytest.mark.parametrize("task", WITHOUT_EXPERTS)
def test_models_of_other_tasks_have_no_experts(tmp_path, task):
    make_moe("Mixtral").save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    with pytest.raises(InputError, match="MixtralForCausalLM"):
        model_facts(tmp_path, "base", Full(kind="full"), task=task)


def test_every_task_is_tested():
    assert LOSSES.keys() | set(WITHOUT_EXPERTS) == TASKS.keys()
