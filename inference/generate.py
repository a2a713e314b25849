"""Lets a model answer: one token after the other, with a key-value cache, until it stops by itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tunesmith.errors import InputError
from tunesmith.inference.text_stream import TextStream, Vocabulary
from tunesmith.modeling.loading.packed_attention_hook import attention_of
from tunesmith.modeling.mode import evaluating
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import autocast_to


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: list[int]
    """As generated, without the stop token."""
    stopped: bool
    """The model ended by a stop token of its own; false: it was cut off by max_new_tokens or its context."""


def generate(
    model: nn.Module,
    tokenizer: Vocabulary,
    prompt_tokens: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
    compute_dtype: torch.dtype | None = None,
    agree: Callable[[int], int] | None = None,
) -> Answer:
    """The model's continuation of the prompt. The model is left as it was: its mode, its attention, torch's global
    generator.

    temperature: 0 takes the likeliest token; above 0 samples, from the smallest set of tokens whose probabilities
    reach top_p.
    on_text: called with each piece of text as it becomes final; together they are Answer.text. compute_dtype: as in
    CausalLoss. agree: where several ranks run a divided model together, gives all of them one rank's token.
    InputError where the prompt is empty or fills the model's context.
    """
    inner = causal_lm(model)
    context = getattr(inner.config, "max_position_embeddings", None) or len(prompt_tokens) + max_new_tokens
    if not prompt_tokens:
        raise InputError("the prompt is empty", remedy="write something for the model to answer")
    if len(prompt_tokens) >= context:
        raise InputError(
            f"the prompt has {len(prompt_tokens)} tokens and the model's context only {context}", remedy="shorten it"
        )
    generator = torch.Generator().manual_seed(seed)
    stream = TextStream(tokenizer, on_text)
    device = next(inner.parameters()).device
    stopped, cache = False, DynamicCache(config=inner.config)
    with torch.no_grad(), answering(model), autocast_to(compute_dtype, device):
        step_tokens = torch.tensor([prompt_tokens], device=device)
        for _ in range(min(max_new_tokens, context - len(prompt_tokens))):
            output = inner(input_ids=step_tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = pick_token(output.logits[0, -1].float().cpu(), temperature, top_p, generator)
            token = agree(token) if agree is not None else token
            if token in tokenizer.stop_token_ids:
                stopped = True
                break
            stream.add(token)
            step_tokens = torch.tensor([[token]], device=device)
    return Answer(stream.finish(), stream.tokens, stopped)


LEAST_TEMPERATURE = 1e-5
"""Below it the likeliest token is as good as certain, and dividing by it leaves the numbers of fp32."""


def pick_token(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature < LEAST_TEMPERATURE:
        return int(logits_V.argmax())
    probabilities_V, order_V = (logits_V / temperature).softmax(-1).sort(descending=True, stable=True)
    # A token stays while those before it have not reached top_p; the first always does.
    before_V = probabilities_V.cumsum(-1) - probabilities_V
    probabilities_V[(before_V >= top_p) & (torch.arange(len(before_V)) > 0)] = 0.0
    return int(order_V[torch.multinomial(probabilities_V, 1, generator=generator)])


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Eval mode, and an attention that knows a cache, for the time of the block."""
    with evaluating(model), attention_of(causal_lm(model), "sdpa"):
        yield
