"""Preference losses compared with trl on the same batch and model, and with their formulas."""

import copy
import json

import numpy as np
import pytest
import torch

from tunesmith.configs.sections.objectives import Preference
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.loader import micro_batch
from tunesmith.data.index.token_index import write_index
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.evaluation.log_probabilities import log_probabilities
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.losses.preference import PreferenceLoss, pair_losses

ROWS = [
    {
        "prompt": "What about my parcel?",
        "chosen": "It left today.",
        "rejected": "No idea, go away and ask somebody else.",
    },
    {"prompt": "And the refund?", "chosen": "You have it on Monday, by the latest.", "rejected": "No."},
    {"prompt": "Hello", "chosen": "Good morning, how can I help you?", "rejected": "What do you want"},
]


@pytest.fixture(scope="module")
def pairs(tiny_llama, tmp_path_factory):
    """Six documents, chosen and rejected alternating, in an index."""
    encoder = make_encoder(Tokenizer.load(tiny_llama), EncodingSpec("preference", 256))
    documents = [document for result in encoder.encode(ROWS) for document in result.documents]
    flags = [[any(a <= t < b for a, b in d.supervised) for t in range(len(d.tokens))] for d in documents]
    rows = [(d.tokens, f, n // 2) for n, (d, f) in enumerate(zip(documents, flags, strict=True))]
    return write_index(tmp_path_factory.mktemp("pairs"), rows, max_seq_len=256, bins=[0, 0, 1, 1, 2, 2])


def changed(model, scale: float = 0.05):
    """A policy that differs from the reference."""
    policy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return policy


def mean_loss(model, options, index, reference) -> tuple[torch.Tensor, PreferenceLoss]:
    loss = PreferenceLoss(model, options)
    flat = micro_batch([index.sample(number) for number in range(index.num_samples)])
    tensors = [torch.from_numpy(array) for array in (flat.tokens, flat.labels, flat.positions)]
    compared = None if reference is None else torch.from_numpy(reference).float()
    sums = loss(*tensors, flat.lengths, reference_D=compared)
    return sums.loss_sum / index.num_samples, loss


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_loss_and_gradient_equal_trl_on_the_same_batch(tiny_llama, pairs, kind, tmp_path):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    base = load_model(tiny_llama, dtype=torch.float32, attention="sdpa")
    policy = changed(base)
    settings = DPOConfig(
        output_dir=str(tmp_path),
        beta=0.3,
        loss_type=["sigmoid" if kind == "dpo" else "ipo"],
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=256,
    )
    trainer = DPOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(base),
        args=settings,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(tiny_llama),
    )
    documents = [pairs.document(n) for n in (*range(0, 6, 2), *range(1, 6, 2))]  # trl: all chosen ones first
    width = max(len(d.tokens) for d in documents)
    batch = {
        name: torch.zeros(6, width, dtype=torch.long) for name in ("input_ids", "attention_mask", "completion_mask")
    }
    for row, document in enumerate(documents):
        length = len(document.tokens)
        batch["input_ids"][row, :length] = torch.from_numpy(document.tokens.astype(np.int64))
        batch["attention_mask"][row, :length] = 1
        batch["completion_mask"][row, :length] = torch.from_numpy(document.supervised.astype(np.int64))
    trainer.model.eval()
    trl_loss = trainer.compute_loss(trainer.model, batch)
    trl_loss.backward()

    reference = log_probabilities(PreferenceLoss(base, Preference()), pairs)[0]
    policy.set_attn_implementation(PACKED)
    loss, _ = mean_loss(policy, Preference(loss=kind, beta=0.3), pairs, reference)
    assert abs(float(loss) - float(trl_loss)) < 1e-5
    assert float(loss) != pytest.approx(0.6931, abs=1e-2)  # the policy differs from the reference
    loss.backward()
    expected = dict(trainer.model.named_parameters())
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_odds_ratio_equals_trl(tmp_path):
    from types import SimpleNamespace

    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    mean = torch.tensor([-0.4, -1.3, -2.5, -0.2, -0.01, -5.0])
    counts = torch.tensor([3, 5, 2, 8, 4, 4])
    trainer = SimpleNamespace(beta=0.25, accelerator=SimpleNamespace(device="cpu"))
    expected = -ORPOTrainer.odds_ratio_loss(trainer, mean[0::2], mean[1::2])[0] - mean[0::2]
    loss, margin = pair_losses(Preference(loss="orpo", beta=0.25), mean * counts, counts, None)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    assert (margin > 0).tolist() == [True, False, True]


def test_an_untrained_policy_has_loss_log_2(tiny_llama, pairs):
    model = load_model(tiny_llama, dtype=torch.float32, attention=PACKED)
    reference, counts = log_probabilities(PreferenceLoss(model, Preference()), pairs)
    loss, _ = mean_loss(model, Preference(), pairs, reference)
    assert float(loss) == pytest.approx(np.log(2), abs=1e-5)
    assert (reference < -1).all()
    assert counts.tolist() == [int(pairs.document(n).supervised.sum()) for n in range(6)]
    with pytest.raises(ValueError, match="reference"):
        mean_loss(model, Preference(), pairs, None)


OPENAI = {
    "input": {"messages": [{"role": "user", "content": "Hello"}]},
    "preferred_output": [{"role": "assistant", "content": "Good morning."}],
    "non_preferred_output": [{"role": "assistant", "content": "What"}],
}


def test_every_pair_format_gives_the_same_tokens(tiny_llama):
    encoder = make_encoder(Tokenizer.load(tiny_llama), EncodingSpec("preference", 256))
    prompt = [{"role": "user", "content": "Hello"}]
    better, worse = OPENAI["preferred_output"], OPENAI["non_preferred_output"]
    rows = [
        OPENAI,
        {"prompt": "Hello", "chosen": "Good morning.", "rejected": "What"},
        {"prompt": prompt, "chosen": better, "rejected": worse},
        {"chosen": prompt + better, "rejected": prompt + worse},
    ]
    results = encoder.encode(json.loads(json.dumps(rows)))
    assert all(result.outcome == "kept" for result in results), [result.reason for result in results]
    first = [(d.tokens, d.supervised) for d in results[0].documents]
    assert len(first) == 2
    assert first[0] != first[1]
    for result in results:
        assert [(d.tokens, d.supervised) for d in result.documents] == first
        assert result.key == results[0].key


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "a", "chosen": "b"}, '"rejected" is missing'),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "equal"),
        ({"chosen": "b", "rejected": "c"}, '"prompt" is missing'),
        ({**OPENAI, "non_preferred_output": []}, "non_preferred_output"),
        ({**OPENAI, "input": {}}, '"input"'),
        ([1], "not an object"),
        ({"prompt": "a", "chosen": "b", "rejected": "c " * 400}, "the rejected answer: too long"),
    ],
)
def test_an_invalid_pair_is_rejected_with_a_reason(tiny_llama, row, why):
    (result,) = make_encoder(Tokenizer.load(tiny_llama), EncodingSpec("preference", 128)).encode([row])
    assert result.outcome == "rejected"
    assert why in result.reason
    assert result.remedy
