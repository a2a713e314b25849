"""The KTO loss compared with trl on the same batch, and its gradient under accumulation and data parallelism."""

import copy
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.rank_processes import outputs_of_ranks
from tests.waiting import LIMIT_S
from tunesmith.configs.sections.method import Full
from tunesmith.configs.sections.objectives import Kto
from tunesmith.configs.sections.optimization import Optimization
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.loader import Loader
from tunesmith.data.index.token_index import TokenIndex, write_index
from tunesmith.data.index.unrelated import ReferenceScores, unrelated_in
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.evaluation.kto import score_ratings
from tunesmith.evaluation.log_probabilities import log_probabilities, sample_log_probabilities
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.kto import KtoLoss, kto_losses
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.plain import PlainEngine

OPTIONS = Kto(beta=0.3, desirable_weight=1.2, undesirable_weight=0.7)
ALONE = Ranks(0, 0, 1)
MOVED = -0.02
"""Scale of the policy's change from the reference, such that z is above zero."""
ROWS = [
    {"prompt": "What about my parcel?", "completion": "It left today.", "label": True},
    {"prompt": "And the refund?", "completion": "No.", "label": False},
    {"prompt": "Hello", "completion": "Good morning, how can I help you?", "label": True},
    {"prompt": "Where are you?", "completion": "What do you want, go away and ask somebody else.", "label": False},
    {"prompt": "Is it late?", "completion": "You have it on Monday, by the latest.", "label": True},
    {"prompt": "Thanks", "completion": "Gladly.", "label": True},
    {"prompt": "My invoice is wrong", "completion": "Your problem.", "label": False},
    {"prompt": "Can I return it?", "completion": "Within thirty days, with the receipt.", "label": True},
]


def write_rows(directory: Path, model: Path, rows=ROWS) -> TokenIndex:
    encoder = make_encoder(Tokenizer.load(model), EncodingSpec("kto", 256))
    documents = [document for result in encoder.encode(rows) for document in result.documents]
    assert len(documents) == len(rows)
    flags = [[any(a <= t < b for a, b in d.supervised) for t in range(len(d.tokens))] for d in documents]
    return write_index(
        directory, [(d.tokens, f, n) for n, (d, f) in enumerate(zip(documents, flags, strict=True))], max_seq_len=256
    )


@pytest.fixture
def index(tiny_llama, tmp_path) -> TokenIndex:
    return write_rows(tmp_path / "rows", tiny_llama)


def changed(model, scale: float = MOVED):
    """A policy that differs from the reference."""
    policy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return policy


def engine_for(model_dir: Path, ranks: Ranks = ALONE, scale: float = MOVED) -> PlainEngine:
    model = changed(load_model(model_dir, dtype=torch.float32, attention=PACKED), scale)
    model = apply_method(model, Full(kind="full"), seed=3)
    optimization = Optimization(learning_rate=1e-2)
    return PlainEngine(KtoLoss(model, OPTIONS), trained_parameters(model), optimization, ranks, device="cpu")


def loader_for(index: TokenIndex, model_dir: Path, micro_batch_size: int, rank: int = 0, world_size: int = 1) -> Loader:
    """Two epochs in steps of six rows, with the unchanged model as reference."""
    make_loader = partial(
        Loader,
        index,
        seed=5,
        epochs=2,
        global_batch_size=6,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world_size,
        counts_samples=True,
        unrelated=True,
    )
    base = CausalLoss(load_model(model_dir, dtype=torch.float32, attention=PACKED))
    documents, _ = log_probabilities(base, index)
    order = make_loader()
    unrelated = sample_log_probabilities(base, order.num_unrelated, order.unrelated_at)
    return make_loader(reference=ReferenceScores(documents.astype(np.float32), unrelated.astype(np.float32)))


def trained(engine: PlainEngine, loader: Loader) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of all steps, and the first gradient."""
    losses, gradient = [], {}
    for step in range(1, loader.total_steps + 1):
        sums = engine.train_batch(loader.step_batch(step))
        losses.append(sums.loss_sum / sums.num_targets)
        if not gradient:
            gradient = {name: p.grad.clone() for name, p in engine.parameters.items()}
        engine.optim_step(1e-2)
    return losses, gradient


@pytest.mark.parametrize(("moved", "is_clamped"), [(0.05, True), (MOVED, False)])
def test_loss_and_gradient_equal_trl_on_the_same_batch(tiny_llama, index, tmp_path, moved, is_clamped):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    base = load_model(tiny_llama, dtype=torch.float32, attention="sdpa")
    settings = KTOConfig(
        output_dir=str(tmp_path),
        beta=OPTIONS.beta,
        desirable_weight=OPTIONS.desirable_weight,
        undesirable_weight=OPTIONS.undesirable_weight,
        per_device_train_batch_size=len(ROWS),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=256,
    )
    engine = engine_for(tiny_llama, scale=moved)
    loader = loader_for(index, tiny_llama, len(ROWS))
    loader.global_batch_size = len(ROWS)
    samples = loader.step_samples(1)
    documents = [index.document(sample) for sample in samples]
    starts = [int(document.supervised.argmax()) for document in documents]
    answers = [document.tokens[document.supervised].tolist() for document in documents]
    examples = [
        {
            "prompt_ids": document.tokens[:start].tolist(),
            "completion_ids": answer,
            "KL_completion_ids": answers[place - 1],  # as KTOTrainer rotates the completions of a batch
            "label": ROWS[sample]["label"],
        }
        for place, (sample, document, start, answer) in enumerate(zip(samples, documents, starts, answers, strict=True))
    ]
    trainer = KTOTrainer(
        model=changed(base, moved),
        ref_model=copy.deepcopy(base),
        args=settings,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(tiny_llama),
    )
    trainer.model.eval()
    trl_loss = trainer.compute_loss(trainer.model, trainer.data_collator(examples))
    trl_loss.backward()
    trl_loss = float(trl_loss.detach())
    (kl,) = trainer._metrics["eval"]["kl"]

    base = CausalLoss(load_model(tiny_llama, dtype=torch.float32, attention=PACKED))
    unrelated = sample_log_probabilities(base, len(ROWS), loader.unrelated_at)
    loader.reference = ReferenceScores(loader.reference.documents, unrelated.astype(np.float32))
    batch = loader.step_batch(1)
    sums = engine.train_batch(batch)
    assert sums.loss_sum / sums.num_targets == pytest.approx(trl_loss, abs=1e-5)
    assert kl == 0.0 if is_clamped else kl > 0.05
    expected = dict(trainer.model.named_parameters())
    for name, parameter in engine.parameters.items():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5, msg=name)
    log_ratio = sum((-engine.loss_module.score(*tensors(m)).loss_sum - m.reference).sum() for m in batch.unrelated)
    assert max(0.0, log_ratio / len(ROWS)) == pytest.approx(kl, abs=1e-4)


def tensors(flat) -> tuple:
    return *(torch.from_numpy(array) for array in (flat.tokens, flat.labels, flat.positions)), flat.lengths


@pytest.mark.parametrize("mean", [-2.0, 0.0, 1.5])
def test_the_loss_follows_the_paper(mean):
    ratios = torch.tensor([0.4, -1.0, 3.0, -0.2], requires_grad=True)
    good = torch.tensor([True, False, False, True])
    z = torch.tensor(mean, requires_grad=True)
    terms = kto_losses(OPTIONS, ratios, good, z)
    sigmoid = [1 / (1 + np.exp(-OPTIONS.beta * (r - max(mean, 0)))) for r in ratios.tolist()]
    expected = [
        OPTIONS.desirable_weight * (1 - s) if label else OPTIONS.undesirable_weight * s
        for s, label in zip(sigmoid, good.tolist(), strict=True)
    ]
    assert terms.loss.tolist() == pytest.approx(expected, abs=1e-6)
    terms.loss.sum().backward()
    assert z.grad is None
    signs = [1 if label else -1 for label in good.tolist()]
    sides = [sign * (r - max(mean, 0)) > 0 for sign, r in zip(signs, ratios.tolist(), strict=True)]
    assert (terms.margin > 0).tolist() == sides


def test_accumulation_gives_the_losses_and_gradient_of_one_large_batch(tiny_llama, index):
    expected, gradient = trained(engine_for(tiny_llama), loader_for(index, tiny_llama, 6))
    assert len(expected) == 3  # 6, 6 and 4 rows: the second batch spans both epochs
    for micro_batch_size in (3, 2, 1):
        losses, actual = trained(engine_for(tiny_llama), loader_for(index, tiny_llama, micro_batch_size))
        assert losses == pytest.approx(expected, abs=1e-5)
        for name, values in gradient.items():
            torch.testing.assert_close(actual[name], values, rtol=0, atol=1e-5, msg=name)


RANK = """
import json, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[3])
from test_kto import engine_for, loader_for, trained
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.training.distributed.ranks import join_ranks, leave_ranks
torch.set_num_threads(1)
ranks = join_ranks("cpu")
model = Path(sys.argv[1])
loader = loader_for(TokenIndex.open(Path(sys.argv[2])), model, 2, ranks.rank, ranks.world_size)
losses, gradient = trained(engine_for(model, ranks), loader)
if ranks.is_first:
    print(json.dumps({"losses": losses, "gradient": {name: g.tolist() for name, g in gradient.items()}}))
leave_ranks()
"""


def test_two_ranks_give_the_losses_and_gradient_of_one_rank(tiny_llama, index, free_port, warm_python):
    expected, gradient = trained(engine_for(tiny_llama), loader_for(index, tiny_llama, 6))
    program = ["-c", RANK, str(tiny_llama), str(index.directory), str(Path(__file__).parent)]
    outputs = outputs_of_ranks(warm_python, program, world_size=2, port=free_port, timeout_s=LIMIT_S)
    result = json.loads(outputs[0].splitlines()[-1])
    assert result["losses"] == pytest.approx(expected, abs=1e-5)
    for name, values in gradient.items():
        torch.testing.assert_close(torch.tensor(result["gradient"][name]), values, rtol=0, atol=1e-5, msg=name)


def test_an_untrained_policy_is_its_own_reference(tiny_llama, index):
    loss = KtoLoss(load_model(tiny_llama, dtype=torch.float32, attention=PACKED), OPTIONS)
    documents, counts = log_probabilities(loss, index)
    unrelated = sample_log_probabilities(loss, index.num_samples, partial(unrelated_in, index))
    scores = score_ratings(loss, index, ReferenceScores(documents, unrelated))
    weights = [OPTIONS.desirable_weight if row["label"] else OPTIONS.undesirable_weight for row in ROWS]
    assert scores.examples.loss_sum == pytest.approx(np.array(weights) / 2, abs=1e-6)
    assert scores.as_facts()["margin"] == pytest.approx(0.0, abs=1e-6)
    assert scores.is_good.tolist() == [row["label"] for row in ROWS]
    assert counts.tolist() == [int(index.document(n).supervised.sum()) for n in range(len(ROWS))]
    with pytest.raises(ValueError, match="reference"):
        score_ratings(loss, index, None)
    with pytest.raises(ValueError, match="reference"):
        loss(torch.tensor([1, 2]), torch.tensor([2, -100]), torch.tensor([0, 1]), [2])


def test_the_margin_of_held_out_rows_is_by_label(tiny_llama, index):
    base = CausalLoss(load_model(tiny_llama, dtype=torch.float32, attention=PACKED))
    documents, _ = log_probabilities(base, index)
    unrelated = sample_log_probabilities(base, index.num_samples, partial(unrelated_in, index))
    good = np.array([row["label"] for row in ROWS])
    scores = score_ratings(
        KtoLoss(base.model, OPTIONS), index, ReferenceScores(documents - np.where(good, 2.0, -1.0), unrelated - 0.5)
    )
    facts = scores.as_facts()
    assert facts["kl"] == pytest.approx(0.5, abs=1e-5)
    assert facts["margin"] == pytest.approx(OPTIONS.beta * 3.0, abs=1e-5)
    assert facts["reward_undesirable"] == pytest.approx(-OPTIONS.beta, abs=1e-5)
    assert scores.examples.num_correct.tolist() == [1] * len(ROWS)
    one_kind = scores._replace(is_good=np.ones(len(ROWS), np.bool_))
    assert one_kind.as_facts()["margin"] is None
