"""Few-shot prompts: held-out rows with training rows before them, to compare fine-tuning with prompting.

The tokenized rows are concatenated; in a chat the examples are earlier turns of the same conversation. Only the targets
of the held-out row remain supervised, so the fine-tuned model and the base model, with and without examples, are scored
on the same tokens.
"""

from pathlib import Path

import numpy as np

from tunesmith.data.index.token_index import COUNT, FLAG, TOKEN, IndexWriter, TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError
from tunesmith.evaluation.answers import spread
from tunesmith.progress import advance


def choose_examples(train: TokenIndex, shots: int, room: int) -> list[int]:
    """Return up to `shots` training documents, spread evenly, with at most `room` tokens in total.

    The choice is deterministic. Raises InputError if no training document fits.
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
            "no training row fits into the model's context together with the longest held-out row",
            where=f"{room} tokens remain",
            remedy="disable the few-shot comparison, or shorten the held-out rows",
        )
    return chosen


def write_few_shot(
    directory: Path, train: TokenIndex, held_out: TokenIndex, tokenizer: Tokenizer, *, shots: int, context: int
) -> int:
    """Write the index of held-out rows with examples; return the number of examples, at most `shots`."""
    longest = max(held_out.document(number).lengths[0] for number in range(held_out.num_documents))
    examples = [train.document(number).tokens for number in choose_examples(train, shots, context - longest)]
    before = np.concatenate([examples[0], *(_without_first(tokens, tokenizer) for tokens in examples[1:])])
    writer = IndexWriter(directory)
    for number in range(held_out.num_documents):
        sample = held_out.document(number)
        row_tokens = _without_first(sample.tokens, tokenizer)
        tokens = np.concatenate([before, row_tokens]).astype(TOKEN)
        supervised = np.zeros(len(tokens), FLAG)
        supervised[len(before) :] = sample.supervised[len(sample.tokens) - len(row_tokens) :]
        advance()
        writer.add(tokens, supervised, np.array([len(tokens)], COUNT), np.array(sample.rows, COUNT))
    writer.finish(None, max_seq_len=context, fingerprint=f"few-shot {held_out.fingerprint}")
    return len(examples)


def _without_first(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Remove the tokens that a tokenizer prepends to a text: they occur once, at the start of the sequence."""
    first = tokenizer.first_tokens
    return tokens[len(first) :] if first and tokens[: len(first)].tolist() == list(first) else tokens
