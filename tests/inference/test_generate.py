"""Answers: equal to transformers' own, stopped by stop tokens, and the model is left as it was."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from tunesmith.configs.recipe import Lora
from tunesmith.errors import InputError
from tunesmith.inference.generate import generate
from tunesmith.inference.types import Sampling
from tunesmith.modeling.adapters.method import apply_method
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.losses.causal import CausalLoss

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


class Words:
    """A tokenizer file with its stop tokens, as generate asks for it."""

    def __init__(self, directory: Path, stop_token_ids=(2,)):
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.stop_token_ids = stop_token_ids

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def theirs(model, prompt: list[int], count: int) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, attention_mask=torch.ones(1, len(prompt))
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.weights
@pytest.mark.parametrize("question", ["What is the capital of France?", "Write one sentence about the sea."])
def test_greedy_equals_transformers_and_stops_by_itself(smollm2, question):
    words, model = Words(smollm2), load_model(smollm2, dtype=torch.float32)
    prompt = words.encode(CHAT.format(question))
    expected = theirs(model, prompt, 48)
    pieces = []
    answer = generate(model, words, prompt, Sampling(48), on_text=pieces.append)
    assert answer.stopped == (expected[-1] == 2)
    assert answer.tokens == [t for t in expected if t != 2]
    assert "".join(pieces) == answer.text == words.decode(expected)
    if "France" in question:
        assert answer.stopped
        assert "Paris" in answer.text


def test_greedy_of_a_packed_model_with_adapters_equals_transformers(tiny_llama):
    words = Words(tiny_llama)
    model = apply_method(load_model(tiny_llama, dtype=torch.float32, attention=PACKED), Lora(kind="lora"))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.2)
    model.train()
    CausalLoss(model)
    prompt = words.encode("the licence and")
    answer = generate(model, words, prompt, Sampling(20))
    assert model.training
    assert model.get_base_model().config._attn_implementation == PACKED
    model.get_base_model().set_attn_implementation("sdpa")
    expected = theirs(model.eval(), prompt, 20)
    assert answer.tokens == expected[: expected.index(2)] if 2 in expected else answer.tokens == expected
    plain = load_model(tiny_llama, dtype=torch.float32)
    assert answer.tokens != generate(plain, words, prompt, Sampling(20)).tokens


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(tiny_llama):
    model, words = load_model(tiny_llama, dtype=torch.float32), Words(tiny_llama, stop_token_ids=())
    prompt = words.encode("the licence and")
    free = generate(model, words, prompt, Sampling(12))
    assert not free.stopped
    assert len(free.tokens) == 12
    stop = free.tokens[5]
    words.stop_token_ids = (stop,)
    answer = generate(model, words, prompt, Sampling(12))
    assert answer.stopped
    assert answer.tokens == free.tokens[: free.tokens.index(stop)]


def test_sampling_follows_the_seed_and_leaves_the_global_generator_alone(tiny_llama):
    model, words = load_model(tiny_llama, dtype=torch.float32), Words(tiny_llama, stop_token_ids=())
    prompt = words.encode("the licence and")

    def draw(seed, **options):
        return generate(model, words, prompt, Sampling(12, seed=seed, **options)).tokens

    state = torch.get_rng_state()
    assert draw(1, temperature=1.0) == draw(1, temperature=1.0)
    assert draw(1, temperature=1.0) != draw(2, temperature=1.0)
    assert draw(1, temperature=5.0, top_p=1e-9) == draw(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_sampling_has_the_models_probabilities(tiny_llama):
    model, words = load_model(tiny_llama, dtype=torch.float32), Words(tiny_llama, stop_token_ids=())
    prompt = words.encode("the licence and")
    with torch.no_grad():
        probabilities = (model(torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(-1)
    kept = probabilities * 0
    order = probabilities.argsort(descending=True)
    count = int((probabilities[order].cumsum(-1) < 0.5).sum()) + 1
    kept[order[:count]] = probabilities[order[:count]] / probabilities[order[:count]].sum()
    draws = [
        generate(model, words, prompt, Sampling(1, temperature=0.7, top_p=0.5, seed=seed)).tokens[0]
        for seed in range(400)
    ]
    seen = torch.bincount(torch.tensor(draws), minlength=len(kept)) / len(draws)
    assert seen[kept == 0].sum() == 0
    assert (seen - kept).abs().max() < 0.1


def test_streamed_text_never_splits_a_character(tiny_llama):
    words = Words(tiny_llama, stop_token_ids=())
    expected = "naïve – 語 ✓ done"
    script = iter(words.encode(expected))

    class Scripted(torch.nn.Module):
        """Makes a real model say what the script says, by its logits."""

        def __call__(self, module, _args, _kwargs, output):
            output.logits.zero_()[..., next(script)] = 1.0
            return output

    model = load_model(tiny_llama, dtype=torch.float32)
    model.register_forward_hook(Scripted(), with_kwargs=True)
    pieces = []
    answer = generate(model, words, [5], Sampling(len(words.encode(expected))), on_text=pieces.append)
    assert answer.text == expected
    assert "".join(pieces) == expected
    assert len(pieces) > 3
    assert not any("�" in piece for piece in pieces)


def test_prompts_that_cannot_be_answered_are_refused(tiny_llama):
    model, words = load_model(tiny_llama, dtype=torch.float32), Words(tiny_llama)
    with pytest.raises(InputError, match="empty"):
        generate(model, words, [], Sampling(3))
    with pytest.raises(InputError, match="2048"):
        generate(model, words, [5] * 2048, Sampling(3))
    assert len(generate(model, Words(tiny_llama, ()), [5] * 2045, Sampling(30)).tokens) == 3
