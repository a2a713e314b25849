"""The number of tokens that a model has vectors for, which may be smaller than its tokenizer."""

import json
from pathlib import Path

from tokenizers import Tokenizer as Backend


def embedding_size(directory: Path) -> int | None:
    """Return the rows of a model's embedding, from the config.json of its directory; None if there is none."""
    try:
        size = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        return None  # the facts of the base model report a damaged file
    return size if isinstance(size, int) else None


def num_ids(backend: Backend) -> int:
    """Return the largest token id plus one; added tokens may leave gaps."""
    added = max(backend.get_added_tokens_decoder(), default=-1)
    return max(backend.get_vocab_size(with_added_tokens=False), added + 1)


def exceeds(backend: Backend, num_embeddings: int | None) -> bool:
    """Whether the tokenizer has tokens for which the model has no embedding."""
    return num_embeddings is not None and num_ids(backend) > num_embeddings
