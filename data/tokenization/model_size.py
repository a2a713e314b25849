"""The number of tokens that a model has vectors for, which may be smaller than its tokenizer."""

import json
import re
from pathlib import Path

from tokenizers import Tokenizer as Backend

_BESIDES = re.compile("vision|visual|audio|talker|mtp|speech|image")
"""Parts of a multimodal model that may have token embeddings of their own (as in modeling/base_model/multimodal.py)."""


def embedding_size(directory: Path) -> int | None:
    """Return the rows of a model's embedding, from the config.json of its directory, or from the weights where that of
    a multimodal model omits them; None if they are unknown."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config")
        size = (text or {}).get("vocab_size", config.get("vocab_size"))
        if size is None and text is not None:  # the default of its class
            size = next(filter(None, map(_stored_rows, sorted(directory.glob("*.safetensors")))), None)
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None  # the facts of the base model report a damaged file
    return size if isinstance(size, int) else None


def _stored_rows(path: Path) -> int | None:
    """The rows of the text model's embedding in a safetensors file; None if it has none."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    names = [name for name in header if name.endswith("embed_tokens.weight") and not _BESIDES.search(name)]
    return header[names[0]]["shape"][0] if names else None


def num_ids(backend: Backend) -> int:
    """Return the largest token id plus one; added tokens may leave gaps."""
    added = max(backend.get_added_tokens_decoder(), default=-1)
    return max(backend.get_vocab_size(with_added_tokens=False), added + 1)


def exceeds(backend: Backend, num_embeddings: int | None) -> bool:
    """Whether the tokenizer has tokens for which the model has no embedding."""
    return num_embeddings is not None and num_ids(backend) > num_embeddings
