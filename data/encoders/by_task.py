"""The encoder of each task, which converts rows to documents."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

from tunesmith.data.encoders.classification import ClassificationEncoder
from tunesmith.data.encoders.deidentifying import DeidentifyingEncoder
from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.encoders.in_vocabulary import InVocabularyEncoder
from tunesmith.data.encoders.kto import KtoEncoder
from tunesmith.data.encoders.language_model import LanguageModelEncoder
from tunesmith.data.encoders.preference import PreferenceEncoder
from tunesmith.data.encoders.renaming import RenamingEncoder
from tunesmith.data.encoders.seq2seq import Seq2SeqEncoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.tokenization.model_size import exceeds
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import RunFault

ENCODERS: dict[str, Callable[[Tokenizer, EncodingSpec], RowEncoder]] = {
    "chat": LanguageModelEncoder,
    "completion": LanguageModelEncoder,
    "text": LanguageModelEncoder,
    "classification": ClassificationEncoder,
    "seq2seq": Seq2SeqEncoder,
    "preference": PreferenceEncoder,
    "kto": KtoEncoder,
}
"""Each raises InputError if the tokenizer or the spec does not suit the task."""


def make_encoder(tokenizer: Tokenizer, spec: EncodingSpec) -> RowEncoder:
    """Create the encoder of the spec's task. Raises InputError if the tokenizer or the spec does not suit it."""
    encoder = ENCODERS[spec.task](tokenizer, spec)
    if exceeds(tokenizer.backend, tokenizer.num_embeddings):
        encoder = InVocabularyEncoder(encoder)
    if spec.columns is not None and (columns := spec.columns.renamed()):
        encoder = RenamingEncoder(encoder, columns)
    return encoder if spec.deidentify is None else DeidentifyingEncoder(encoder, spec.deidentify)


def portable(encoder: RowEncoder) -> str:
    """Serialize an encoder as JSON for `encoder_from` in another process. The tokenizer must be loaded from a directory
    that the other process sees at the same path."""
    tokenizer = encoder.tokenizer
    assert tokenizer.directory is not None
    described = {
        "directory": str(tokenizer.directory.resolve()),
        "chat_template": str(tokenizer.chat_template.resolve()) if tokenizer.chat_template else None,
        "today": tokenizer.template.today if tokenizer.template else None,
        "chat_template_kwargs": tokenizer.template_kwargs,
        "fingerprint": tokenizer.fingerprint,
        "shape": encoder.spec.as_json(),
    }
    return json.dumps(described)


def encoder_from(text: str) -> RowEncoder:
    """Create the encoder that `portable` serialized. Raises RunFault if the tokenizer's files differ."""
    described = json.loads(text)
    template, today = described["chat_template"], described["today"]
    tokenizer = Tokenizer.load(
        Path(described["directory"]),
        Path(template) if template else None,
        date.fromisoformat(today) if today else None,
        described["chat_template_kwargs"],
    )
    if tokenizer.fingerprint != described["fingerprint"]:
        raise RunFault(
            "the tokenizer has changed since the run was started",
            where=described["directory"],
            remedy="start again without changing its files",
        )
    return make_encoder(tokenizer, EncodingSpec.from_json(described["shape"]))
