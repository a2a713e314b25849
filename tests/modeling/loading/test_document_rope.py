"""longrope and dynamic rotary embeddings: a row's loss, gradient and answer do not depend on other rows, and equal
those of transformers for the row alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from tunesmith.configs.sections.method import Lora
from tunesmith.inference.batched_model import BatchedModel
from tunesmith.inference.generate import generate_batch
from tunesmith.inference.sequence import Generation
from tunesmith.inference.types import Sampling
from tunesmith.kernels.dispatch import Kernels
from tunesmith.modeling.adapters.method import apply_method
from tunesmith.modeling.loading.document_rope import document_rotary
from tunesmith.modeling.loading.heads import Labels, load_classifier
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.loading.stream import stream_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.classification import ClassificationLoss
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.patching.replacements import use_kernels

SHORT = 8
"""Longest sequence with the model's own frequencies."""
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": SHORT,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0],
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
SIZES = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.4, "head_dim": 8,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
DYNAMIC_SIZES = {"rope_parameters": DYNAMIC, "max_position_embeddings": SHORT}
MODELS = {
    "llama-longrope": ("LlamaForCausalLM", {"rope_parameters": LONGROPE}),
    "llama-dynamic": ("LlamaForCausalLM", DYNAMIC_SIZES),
    "qwen3-dynamic": ("Qwen3ForCausalLM", DYNAMIC_SIZES),
    "phi3-longrope": (
        "Phi3ForCausalLM",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": SHORT, "head_dim": None},
    ),
    "gemma3-longrope": (
        "Gemma3ForCausalLM",
        {
            "rope_parameters": {
                "full_attention": LONGROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 5,
        },
    ),
}
ROWS = [5, SHORT, SHORT + 1, 21, 2, SHORT + 1, 13]
"""Lengths on both sides of the limit; dynamic frequencies differ between all lengths above it."""


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """The directory of each model, created on first use."""

    def directory_of(name: str) -> Path:
        path = tmp_path_factory.getbasetemp() / "document-rope" / name
        if not path.is_dir():
            kind, own = MODELS[name]
            sizes = {key: value for key, value in (SIZES | own).items() if value is not None}
            torch.manual_seed(0)
            model_class = getattr(transformers, kind)
            model_class(model_class.config_class(**sizes)).save_pretrained(path)
        return path

    return directory_of


def make_rows(lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 384, (length,), generator=generator) for length in lengths]


def alone(directory, tokens):
    """Loss sum and gradients in transformers: a new model for each row, as its dynamic frequencies remember others."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="sdpa"
    )
    loss = cross_entropy(model(tokens[None], use_cache=False).logits[0, :-1], tokens[1:], reduction="sum")
    loss.backward()
    return float(loss), {name: parameter.grad for name, parameter in model.named_parameters()}


def packed(rows):
    labels = torch.cat([torch.cat([row[1:], torch.tensor([-100])]) for row in rows])
    return torch.cat(rows), labels, torch.cat([torch.arange(len(row)) for row in rows]), [len(row) for row in rows]


@pytest.mark.parametrize("stream", [False, True], ids=["loaded", "streamed"])
@pytest.mark.parametrize("name", MODELS)
def test_a_rows_loss_and_gradient_equal_those_of_the_row_alone(directories, name, stream):
    directory, rows = directories(name), make_rows(ROWS)
    expected = [alone(directory, row) for row in rows]
    load = stream_model if stream else load_model
    loss = CausalLoss(load(directory, dtype=torch.float64, attention=PACKED))
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 5, 3], [3], [4, 2], [0]):  # micro-batches, one after the other
        loss.zero_grad()
        losses, _ = loss.document_losses(*packed([rows[number] for number in order]))
        losses.sum().backward()
        assert losses.tolist() == pytest.approx([expected[number][0] for number in order], rel=1e-5)
        for parameter_name, parameter in loss.model.named_parameters():
            total = torch.stack([expected[number][1][parameter_name] for number in order]).sum(0)
            # 1e-5: rotary angles are fp32 in every precision.
            torch.testing.assert_close(parameter.grad, total, rtol=1e-5, atol=1e-5, msg=parameter_name)


@pytest.mark.parametrize("name", ["llama-longrope", "phi3-longrope", "llama-dynamic"])
def test_the_runs_kernels_use_the_rows_own_frequencies(directories, name):
    rows = make_rows(ROWS)
    model = apply_method(
        causal_lm(load_model(directories(name), dtype=torch.float32, attention=PACKED)), Lora(kind="lora", lora_rank=2)
    )
    use_kernels(model, Kernels())
    scores = CausalLoss(model).score(*packed(rows))
    expected = [alone(directories(name), row)[0] for row in rows]
    assert scores.loss_sum.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_classifiers_logits_are_those_of_the_row_alone(directories):
    rows = make_rows(ROWS)
    labels = Labels("single_label", ("no", "yes"), seed=0)
    model: Any = load_classifier(directories("llama-longrope"), labels, dtype=torch.float32)
    loss = ClassificationLoss(model, labels, None)
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    with torch.no_grad():
        together = loss.logits(torch.cat(rows), positions, ROWS)
        plain = transformers.AutoModelForCausalLM.from_pretrained(directories("llama-longrope"))
        expected = [model.score(plain.model(row[None]).last_hidden_state[0, -1]) for row in rows]
    torch.testing.assert_close(together, torch.stack(expected), rtol=1e-4, atol=1e-5)


def greedy(directory: Path, prompt: list[int], count: int) -> list[int]:
    """Greedy continuation with the whole sequence at every step: no cache, transformers' own frequencies."""
    tokens = list(prompt)
    for _ in range(count):
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


class Plain:
    """A vocabulary without stop tokens, whose tokens have no text."""

    stop_token_ids: tuple[int, ...] = ()

    def decode(self, tokens):
        return "x" * len(tokens)

    def token_text(self, token):
        return "x"


PROMPTS = [[5, 9, 11], [7] * (SHORT - 2) + [3], [4, 8] * SHORT]


@pytest.mark.parametrize("name", ["llama-longrope", "phi3-longrope"])
def test_cached_decoding_crosses_the_limit_as_the_whole_sequence_does(directories, name):
    directory = directories(name)
    expected = [greedy(directory, prompt, 8) for prompt in PROMPTS]
    model = load_model(directory, dtype=torch.float32)
    together = generate_batch(model, Plain(), PROMPTS, Sampling(8))
    assert [answer.tokens for answer in together] == expected
    one_by_one = [generate_batch(model, Plain(), [prompt], Sampling(8))[0].tokens for prompt in PROMPTS]
    assert one_by_one == expected


@pytest.mark.parametrize("step_rows", [256, 4], ids=["whole prompts", "prompts in chunks"])
def test_batched_generation_crosses_the_limit_as_the_whole_sequence_does(directories, step_rows):
    directory = directories("llama-longrope")
    batch = BatchedModel(directory, torch.device("cpu"), 4096, lambda: 1 << 30)
    batch.scheduler.step_rows = step_rows
    sequences = [
        Generation(number, "", "", prompt, Plain(), Sampling(8), 8)  # type: ignore[arg-type]
        for number, prompt in enumerate(PROMPTS)
    ]
    for sequence in sequences:
        batch.join(sequence)
    for _ in range(100):
        if batch.active:
            batch.step()
    assert [sequence.tokens[sequence.prompt_length :] for sequence in sequences] == [
        greedy(directory, prompt, 8) for prompt in PROMPTS
    ]


def test_other_models_keep_their_rotary_embedding(tiny_llama):
    assert document_rotary(load_model(tiny_llama, dtype=torch.float32)) is None
