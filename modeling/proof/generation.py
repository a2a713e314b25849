"""Compares greedy generation with a cache against the model's forward without one.

P prompt tokens, N generated tokens, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from tunesmith.errors import RunFault
from tunesmith.modeling.proof.limits import relative_difference

NEW_TOKENS = 6


@torch.no_grad()
def compare_generation(model: PreTrainedModel, prompt_P: Tensor, *, new_tokens: int = NEW_TOKENS) -> float:
    """Return the relative difference of the logits with and without the cache, without their mean.

    The tokens are those chosen with the cache; a forward without it then computes all logits at once, so that a tie
    cannot make the two continue differently. prompt: int64 [P]. RunFault if the model returns no cache.
    """
    inner: Any = model
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,  # also where an end-of-text token has the largest logit
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    prompt_1P = prompt_P[None]
    generated = inner.generate(prompt_1P, attention_mask=torch.ones_like(prompt_1P), generation_config=config)
    if not any(getattr(generated, name, None) is not None for name in ("past_key_values", "cache_params", "state")):
        raise RunFault(f"{type(model).__name__} generates without a cache")
    cached_NV = torch.cat(generated.logits).float()
    output = inner(input_ids=generated.sequences[:, :-1], use_cache=False)
    logits_NV = (output.logits if hasattr(output, "logits") else output[0])[0, len(prompt_P) - 1 :].float()
    centred = (logits - logits.mean(-1, keepdim=True) for logits in (cached_NV, logits_NV))
    return relative_difference(*centred)
