"""Held-out rows with a few training rows before them: what prompting alone would have brought.

The rows are put together as tokens, each as it was prepared: in a chat the examples are earlier turns of the same
conversation. Only the held-out row's own targets stay, so the base model with examples, the base model without and the
tuned model are measured on the very same tokens.
"""

from pathlib import Path

import numpy as np

from tunesmith.data.index.token_index import COUNT, FLAG, TOKEN, IndexWriter, TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError
from tunesmith.evaluation.answers import spread


def choose_examples(train: TokenIndex, shots: int, room: int) -> list[int]:
    """Documents of the training rows, at most `shots`, spread evenly, always the same ones, of `room` tokens in all.

    Raises InputError where not even one fits.
    """
    chosen: list[int] = []
    for document in spread(train.num_documents):
        if len(chosen) == shots:
            break
        if (size := train.document(document).lengths[0]) <= room:
            chosen.append(document)
            room -= size
    if not chosen:
        raise InputError(
            "no training row fits into the model's context beside the longest held-out row",
            where=f"{room} tokens are left",
            remedy="ask for no few-shot comparison, or shorten the held-out rows",
        )
    return chosen


def write_few_shot(
    directory: Path, train: TokenIndex, held_out: TokenIndex, tokenizer: Tokenizer, *, shots: int, context: int
) -> int:
    """Write the index of the held-out rows with examples before them; the number of examples, `shots` or what fits."""
    longest = max(held_out.document(number).lengths[0] for number in range(held_out.num_documents))
    examples = [train.document(number).tokens for number in choose_examples(train, shots, context - longest)]
    before = np.concatenate([examples[0], *(_without_first(tokens, tokenizer) for tokens in examples[1:])])
    writer = IndexWriter(directory)
    for number in range(held_out.num_documents):
        sample = held_out.document(number)
        own = _without_first(sample.tokens, tokenizer)
        tokens = np.concatenate([before, own]).astype(TOKEN)
        supervised = np.zeros(len(tokens), FLAG)
        supervised[len(before) :] = sample.supervised[len(sample.tokens) - len(own) :]
        writer.add(tokens, supervised, np.array([len(tokens)], COUNT), np.array(sample.rows, COUNT))
    writer.finish(None, max_seq_len=context, fingerprint=f"few-shot {held_out.fingerprint}")
    return len(examples)


def _without_first(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Without what a tokenizer puts before a text: it stands once, before all."""
    first = tokenizer.first_tokens
    return tokens[len(first) :] if first and tokens[: len(first)].tolist() == list(first) else tokens
