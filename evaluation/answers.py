"""Sample prompts that the model answers before and after training, for human inspection."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.assistant_spans import TemplateFailure
from tunesmith.data.tokenization.chat_template import ChatTemplate
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.generate import generate
from tunesmith.inference.types import Sampling

MAX_TEXT_PROMPT_TOKENS = 32
_MARK = "\u241fQUESTION\u241f"


@dataclass(frozen=True)
class Prompt:
    """row: row id. tokens: input of the model. text: as shown to users. reference: the answer in the data."""

    row: int
    tokens: list[int]
    text: str
    reference: str


def sample_prompts(
    index: TokenIndex,
    tokenizer: Tokenizer,
    count: int,
    *,
    max_tokens: int | None = None,
    better_of_pairs: bool = False,
) -> list[Prompt]:
    """Return up to `count` prompts spread evenly over the documents of the index. The choice is deterministic.

    Prompts longer than max_tokens (default: max_seq_len of the index) are skipped. better_of_pairs: documents are pairs
    of answers, the preferred one first; only the preferred ones are used.
    """
    prompts: list[Prompt] = []
    limit = max_tokens or index.max_seq_len
    step = 2 if better_of_pairs else 1
    for number in spread(index.num_documents // step):
        document = step * number
        if len(prompts) == count:
            break
        sample = index.document(document)
        length = prompt_length(sample.supervised)
        if length is not None and length <= limit:
            prompts.append(_prompt(sample.rows[0], sample.tokens, sample.supervised, length, tokenizer))
    return sorted(prompts, key=lambda prompt: prompt.row)


def prompt_at(index: TokenIndex, document: int, tokenizer: Tokenizer) -> Prompt:
    """Return the prompt of a document's last answer. Raises ValueError if the document has no supervised token."""
    sample = index.document(document)
    length = prompt_length(sample.supervised)
    if length is None:
        raise ValueError(f"document {document} has no supervised token")
    return _prompt(sample.rows[0], sample.tokens, sample.supervised, length, tokenizer)


def answer(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    compute_dtype: torch.dtype | None = None,
    agree: Callable[[int], int] | None = None,
) -> list[dict[str, Any]]:
    """Generate greedy answers, as items of the `answers` event: {row, prompt, reference, answer, stopped}.

    compute_dtype: as in CausalLoss. agree: as in `generate`.
    """
    items = []
    for prompt in prompts:
        output = generate(
            model,
            tokenizer,  # type: ignore[arg-type]  # pyright does not accept a cached_property as a property
            prompt.tokens,
            Sampling(max_new_tokens),
            compute_dtype=compute_dtype,
            agree=agree,
        )
        items.append(
            {
                "row": prompt.row,
                "prompt": prompt.text,
                "reference": prompt.reference,
                "answer": output.text,
                "stopped": output.stopped,
            }
        )
    return items


def prompt_length(supervised: np.ndarray) -> int | None:
    """Return the number of tokens before the last supervised span: the length of the last answer's prompt.

    supervised: bool [T]. None if no token is supervised. If all are (plain text), half of the document, at most
    MAX_TEXT_PROMPT_TOKENS.
    """
    targets = np.flatnonzero(supervised)
    if not len(targets):
        return None
    gaps = np.flatnonzero(np.diff(targets) > 1)
    start = int(targets[gaps[-1] + 1] if len(gaps) else targets[0])
    if start <= 1:  # the first token is never a target, so a span that starts at the second one has no prompt
        return max(1, min(len(supervised) // 2, MAX_TEXT_PROMPT_TOKENS))
    return start


def question_of(text: str, template: ChatTemplate | None) -> str | None:
    """Return the last user message of a rendered prompt; None if the template does not delimit it.

    The delimiters are determined by rendering a user message with and without messages before it.
    """
    if template is None:
        return None
    try:
        alone = template.render([{"role": "user", "content": _MARK}], add_generation_prompt=True)
        later = template.render(
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": _MARK},
            ],
            add_generation_prompt=True,
        )
    except TemplateFailure:
        return None
    if alone.count(_MARK) != 1 or later.count(_MARK) != 1:
        return None
    (before_alone, closing), (before_later, _) = alone.split(_MARK), later.split(_MARK)
    opening = _common_suffix(before_alone, before_later)
    if not opening.strip() or not closing.strip() or not text.endswith(closing):
        return None
    body = text[: len(text) - len(closing)]
    start = body.rfind(opening)
    return body[start + len(opening) :].strip() if start >= 0 else None


def _prompt(row: int, tokens: np.ndarray, supervised: np.ndarray, length: int, tokenizer: Tokenizer) -> Prompt:
    prompt = tokens[:length].tolist()
    question = question_of(tokenizer.decode(prompt, skip_special_tokens=False), tokenizer.template)
    text = tokenizer.decode(prompt, skip_special_tokens=True).strip() if question is None else question
    rest = tokens[length:][supervised[length:]].tolist()
    return Prompt(int(row), prompt, text, tokenizer.decode(rest, skip_special_tokens=True).strip())


def spread(count: int) -> Iterator[int]:
    """Yield range(count) in bit-reversed order, so that every prefix is spread evenly."""
    width = max(1, (count - 1).bit_length())
    for number in range(1 << width):
        if (mirrored := int(format(number, f"0{width}b")[::-1], 2)) < count:
            yield mirrored


def _common_suffix(first: str, second: str) -> str:
    length = 0
    while length < min(len(first), len(second)) and first[-1 - length] == second[-1 - length]:
        length += 1
    return first[len(first) - length :]
