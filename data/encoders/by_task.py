"""Which encoder turns the rows of a task into documents."""

import json
from collections.abc import Callable
from pathlib import Path

from tunesmith.data.encoders.classification import ClassificationEncoder
from tunesmith.data.encoders.deidentifying import DeidentifyingEncoder
from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.encoders.kto import KtoEncoder
from tunesmith.data.encoders.language_model import LanguageModelEncoder
from tunesmith.data.encoders.preference import PreferenceEncoder
from tunesmith.data.encoders.seq2seq import Seq2SeqEncoder
from tunesmith.data.encoders.spec import EncodingSpec
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
"""Each raises InputError where the tokenizer cannot serve the task, or the task not the spec."""


def make_encoder(tokenizer: Tokenizer, spec: EncodingSpec) -> RowEncoder:
    """Raises InputError where the tokenizer cannot serve the task."""
    encoder = ENCODERS[spec.task](tokenizer, spec)
    return encoder if spec.deidentify is None else DeidentifyingEncoder(encoder, spec.deidentify)


def portable(encoder: RowEncoder) -> str:
    """JSON from which another process makes the same encoder with `encoder_from`. The tokenizer is one of a directory,
    which that process sees at the same path."""
    tokenizer = encoder.tokenizer
    assert tokenizer.directory is not None
    described = {
        "directory": str(tokenizer.directory.resolve()),
        "chat_template": str(tokenizer.chat_template.resolve()) if tokenizer.chat_template else None,
        "fingerprint": tokenizer.fingerprint,
        "shape": encoder.spec.as_json(),
    }
    return json.dumps(described)


def encoder_from(text: str) -> RowEncoder:
    """Raises RunFault where the tokenizer is another one now, or here."""
    described = json.loads(text)
    template = described["chat_template"]
    tokenizer = Tokenizer.load(Path(described["directory"]), Path(template) if template else None)
    if tokenizer.fingerprint != described["fingerprint"]:
        raise RunFault(
            "the tokenizer is not the one that the run was started with",
            where=described["directory"],
            remedy="start again once its files stay as they are (a template that shows the date changes at midnight)",
        )
    return make_encoder(tokenizer, EncodingSpec.from_json(described["shape"]))
