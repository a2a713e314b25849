"""`generate` equals transformers' `generate`, ends at stop tokens and restores the model's state."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from tunesmith.configs.sections.method import Lora
from tunesmith.errors import InputError
from tunesmith.inference.generate import generate
from tunesmith.inference.types import Sampling
from tunesmith.modeling.adapters.method import apply_method
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.losses.causal import CausalLoss

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


class TokenizerFile:
    """A tokenizer with stop tokens, as `generate` needs it."""

    def __init__(self, directory: Path, stop_token_ids=(2,)):
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.stop_token_ids = stop_token_ids

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def transformers_tokens(model, prompt: list[int], count: int) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, attention_mask=torch.ones(1, len(prompt))
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.weights
@pytest.mark.parametrize("question", ["What is the capital of France?", "Write one sentence about the sea."])
def test_greedy_decoding_equals_transformers(smollm2, question):
    tokenizer, model = TokenizerFile(smollm2), load_model(smollm2, dtype=torch.float32)
    prompt = tokenizer.encode(CHAT.format(question))
    expected = transformers_tokens(model, prompt, 48)
    pieces = []
    response = generate(model, tokenizer, prompt, Sampling(48), on_text=pieces.append)
    assert response.stopped == (expected[-1] == 2)
    assert response.tokens == [t for t in expected if t != 2]
    assert "".join(pieces) == response.text == tokenizer.decode(expected)
    if "France" in question:
        assert response.stopped
        assert "Paris" in response.text


def test_greedy_decoding_with_packed_attention_and_adapters_equals_transformers(tiny_llama):
    tokenizer = TokenizerFile(tiny_llama)
    model = apply_method(load_model(tiny_llama, dtype=torch.float32, attention=PACKED), Lora(kind="lora"))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.2)
    model.train()
    CausalLoss(model)
    prompt = tokenizer.encode("the licence and")
    response = generate(model, tokenizer, prompt, Sampling(20))
    assert model.training
    assert model.get_base_model().config._attn_implementation == PACKED
    model.get_base_model().set_attn_implementation("sdpa")
    expected = transformers_tokens(model.eval(), prompt, 20)
    assert response.tokens == expected[: expected.index(2)] if 2 in expected else response.tokens == expected
    plain = load_model(tiny_llama, dtype=torch.float32)
    assert response.tokens != generate(plain, tokenizer, prompt, Sampling(20)).tokens


def test_a_stop_token_ends_the_response_and_is_not_part_of_it(tiny_llama):
    model, tokenizer = load_model(tiny_llama, dtype=torch.float32), TokenizerFile(tiny_llama, stop_token_ids=())
    prompt = tokenizer.encode("the licence and")
    free = generate(model, tokenizer, prompt, Sampling(12))
    assert not free.stopped
    assert len(free.tokens) == 12
    stop = free.tokens[5]
    tokenizer.stop_token_ids = (stop,)
    response = generate(model, tokenizer, prompt, Sampling(12))
    assert response.stopped
    assert response.tokens == free.tokens[: free.tokens.index(stop)]


def test_sampling_is_seeded_and_does_not_use_the_global_generator(tiny_llama):
    model, tokenizer = load_model(tiny_llama, dtype=torch.float32), TokenizerFile(tiny_llama, stop_token_ids=())
    prompt = tokenizer.encode("the licence and")

    def sample(seed, **options):
        return generate(model, tokenizer, prompt, Sampling(12, seed=seed, **options)).tokens

    state = torch.get_rng_state()
    assert sample(1, temperature=1.0) == sample(1, temperature=1.0)
    assert sample(1, temperature=1.0) != sample(2, temperature=1.0)
    assert sample(1, temperature=5.0, top_p=1e-9) == sample(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_follow_the_top_p_distribution(tiny_llama):
    model, tokenizer = load_model(tiny_llama, dtype=torch.float32), TokenizerFile(tiny_llama, stop_token_ids=())
    prompt = tokenizer.encode("the licence and")
    with torch.no_grad():
        probabilities = (model(torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(-1)
    kept = probabilities * 0
    order = probabilities.argsort(descending=True)
    count = int((probabilities[order].cumsum(-1) < 0.5).sum()) + 1
    kept[order[:count]] = probabilities[order[:count]] / probabilities[order[:count]].sum()
    samples = [
        generate(model, tokenizer, prompt, Sampling(1, temperature=0.7, top_p=0.5, seed=seed)).tokens[0]
        for seed in range(400)
    ]
    seen = torch.bincount(torch.tensor(samples), minlength=len(kept)) / len(samples)
    assert seen[kept == 0].sum() == 0
    assert (seen - kept).abs().max() < 0.1


def test_streamed_text_does_not_split_characters(tiny_llama):
    tokenizer = TokenizerFile(tiny_llama, stop_token_ids=())
    expected = "naïve – 語 ✓ done"
    script = iter(tokenizer.encode(expected))

    class Scripted(torch.nn.Module):
        """Hook that makes a real model generate the scripted tokens, by its logits."""

        def __call__(self, module, _args, _kwargs, output):
            output.logits.zero_()[..., next(script)] = 1.0
            return output

    model = load_model(tiny_llama, dtype=torch.float32)
    model.register_forward_hook(Scripted(), with_kwargs=True)
    pieces = []
    response = generate(model, tokenizer, [5], Sampling(len(tokenizer.encode(expected))), on_text=pieces.append)
    assert response.text == expected
    assert "".join(pieces) == expected
    assert len(pieces) > 3
    assert not any("�" in piece for piece in pieces)


def test_a_token_beyond_the_embedding_is_named(tiny_llama):
    model, tokenizer = load_model(tiny_llama, dtype=torch.float32), TokenizerFile(tiny_llama)
    with pytest.raises(InputError, match="token 384 of the prompt is beyond the embedding of the model, which has 384"):
        generate(model, tokenizer, [5, 384], Sampling(4))


def test_empty_and_too_long_prompts_are_rejected(tiny_llama):
    model, tokenizer = load_model(tiny_llama, dtype=torch.float32), TokenizerFile(tiny_llama)
    with pytest.raises(InputError, match="empty"):
        generate(model, tokenizer, [], Sampling(3))
    with pytest.raises(InputError, match="2,048"):
        generate(model, tokenizer, [5] * 2048, Sampling(3))
    assert len(generate(model, TokenizerFile(tiny_llama, ()), [5] * 2045, Sampling(30)).tokens) == 3
