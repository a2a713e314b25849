"""Which encoder turns the rows of a task into documents, and the options that it must know beside the tokenizer."""

import json
from pathlib import Path

from tunesmith.configs.recipe import Classification, Deidentify, Recipe, Seq2Seq
from tunesmith.data.encoders.classification import LabelEncoder
from tunesmith.data.encoders.deidentifying import DeidentifyingEncoder
from tunesmith.data.encoders.encoder import Options, RowEncoder
from tunesmith.data.encoders.language_model import Encoder
from tunesmith.data.encoders.preference import PairEncoder
from tunesmith.data.encoders.seq2seq import SequenceEncoder
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import RunFault


def options_of(recipe: Recipe, labels: list[str] | None = None) -> Options:
    """labels: of a classification, in the order of their numbers."""
    options: Options = {}
    if recipe.task == "classification":
        options |= {"classification": recipe.classification.model_dump(), "labels": labels}
    if recipe.task == "seq2seq":
        options |= {"seq2seq": recipe.seq2seq.model_dump()}
    if recipe.data.deidentify is not None:
        options |= {"deidentify": recipe.data.deidentify.model_dump()}
    return options


def make_encoder(
    tokenizer: Tokenizer, task: str, max_seq_len: int, too_long: str, options: Options | None = None
) -> RowEncoder:
    """Raises InputError where the tokenizer cannot serve the task."""
    options = options or {}
    encoder: RowEncoder
    if task == "classification":
        wanted = Classification(**options["classification"])
        encoder = LabelEncoder(tokenizer, max_seq_len, too_long, wanted, options["labels"])
    elif task == "seq2seq":
        encoder = SequenceEncoder(tokenizer, max_seq_len, too_long, Seq2Seq(**options["seq2seq"]))
    elif task == "preference":
        encoder = PairEncoder(tokenizer, max_seq_len, too_long)
    else:
        encoder = Encoder(tokenizer, task, max_seq_len, too_long)
    if "deidentify" in options:
        return DeidentifyingEncoder(encoder, Deidentify(**options["deidentify"]))
    return encoder


def portable(encoder: RowEncoder) -> str:
    """JSON from which another process makes the same encoder with `encoder_from`. The tokenizer is one of a directory,
    which that process sees at the same path."""
    tokenizer = encoder.tokenizer
    assert tokenizer.directory is not None
    told = {
        "directory": str(tokenizer.directory.resolve()),
        "chat_template": str(tokenizer.chat_template.resolve()) if tokenizer.chat_template else None,
        "fingerprint": tokenizer.fingerprint,
        "shape": [encoder.task, encoder.max_seq_len, encoder.too_long, encoder.options],
    }
    return json.dumps(told)


def encoder_from(text: str) -> RowEncoder:
    """Raises RunFault where the tokenizer is another one now, or here."""
    told = json.loads(text)
    template = told["chat_template"]
    tokenizer = Tokenizer.load(Path(told["directory"]), Path(template) if template else None)
    if tokenizer.fingerprint != told["fingerprint"]:
        raise RunFault(
            "the tokenizer is not the one that the run was started with",
            where=told["directory"],
            remedy="start again once its files stay as they are (a template that shows the date changes at midnight)",
        )
    return make_encoder(tokenizer, *told["shape"])
