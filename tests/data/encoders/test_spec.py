"""Cache keys of what earlier versions prepared: runs that they started continue with it. Where the tokens of a row may
have changed since, the key has changed, too."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import make_tokenizer
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.tasks import TASKS
from tunesmith.data.encoders.by_task import ENCODERS, encoder_from, make_encoder, portable
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.build import read_sources
from tunesmith.data.index.prepare import earlier_fingerprint, first_task, prepare, prepare_file, read_labels
from tunesmith.data.index.shard import shard_id
from tunesmith.data.tokenization.tokenizer import Tokenizer

FILES = {
    "chat.jsonl": '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'
    '{"messages": [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "Goodbye"}]}\n',
    "completion.jsonl": '{"prompt": "1 + 1 =", "completion": " 2"}\n{"prompt": "2 + 2 =", "completion": " 4"}\n',
    "text.txt": "Once upon a time there was a licence.\n" * 4,
    "labels.jsonl": '{"text": "good", "label": "yes"}\n{"text": "bad", "label": "no"}\n',
    "sets.jsonl": '{"text": "good", "tags": ["a", "b"]}\n{"text": "bad", "tags": []}\n',
    "pairs.jsonl": '{"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}\n',
    "translations.jsonl": '{"source": "one", "target": "eins"}\n{"source": "two", "target": "zwei"}\n',
}
SETS = {"kind": "multi_label", "label_column": "tags", "labels": ["a", "b"]}
RECIPES = {
    "chat": {"data": {"train": ["chat.jsonl"], "max_seq_len": 64}},
    "chat, retained": {
        "data": {"train": ["chat.jsonl"], "max_seq_len": 64, "deidentify": {"skip": ["x"]}},
        "evaluation": {"retain": "text.txt"},
    },
    "completion, held out": {
        "task": "completion",
        "data": {"train": ["completion.jsonl"], "validation": 0.5, "max_seq_len": 64, "duplicates": "drop"},
    },
    "text, split": {"task": "text", "data": {"train": ["text.txt"], "max_seq_len": 16, "too_long": "split"}},
    "text, not packed": {"task": "text", "data": {"train": ["text.txt"], "max_seq_len": 512, "packing": False}},
    "classification": {
        "task": "classification",
        "data": {"train": ["labels.jsonl"], "max_seq_len": 64, "too_long": "truncate"},
        "evaluation": {"retain": "chat.jsonl"},
    },
    "classification, de-identified": {
        "task": "classification",
        "classification": SETS,
        "data": {"train": ["sets.jsonl"], "max_seq_len": 64, "deidentify": {}},
    },
    "seq2seq": {
        "task": "seq2seq",
        "seq2seq": {"prefix": "to German: "},
        "data": {"train": ["translations.jsonl"], "max_seq_len": 64, "too_long": "drop"},
    },
    "preference": {"task": "preference", "data": {"train": ["pairs.jsonl"], "max_seq_len": 64}},
    "preference, de-identified": {
        "task": "preference",
        "preference": {"loss": "ipo"},
        "data": {"train": ["pairs.jsonl"], "max_seq_len": 64, "deidentify": {"kinds": ["person"]}},
    },
}

# For each recipe: the id of its first shard, the fingerprint of its index, the encoder's part of `portable`, the
# fingerprint of the index that `prepare_file` creates from the same file, and that of the retain rows. Recorded with
# commit cf466db and a tokenizer with this fingerprint: shard_id, DataFacts.fingerprint of prepare, "shape" of portable,
# directory name of prepare_file with options_of(recipe, labels_of(recipe, sources)), and of DataFacts.retain.
FINGERPRINT = "f" * 64
RECORDED = {
    "chat": (
        "c7ce2a1b624fd38648198097b4aa8701c1b241853b30311a4a496ca23ad82b4d",
        "d4e4f1ef411b1d23d6ec1c001380bfcc4d2c7521b665da4e6b9f394fed415e15",
        '["chat", 64, "error", {}]',
        "20f7c5383f99a4a12b1867b22fd65b720c66c7b50af546b77300fe1f4780514b",
        None,
    ),
    "chat, retained": (
        "9752f45727edfdc334ef16826e50dfd4b8281756d7930b570b103f620e85957c",
        "450881034e7ca95af6aee945ba755449fb2f8ea06ad8dc053f4ab652b21d8614",
        '["chat", 64, "error", {"deidentify": {"kinds": ["person", "date", "phone", "email", "url", '
        '"number"], "skip": ["x"], "spacy_model": null, "seed": 0}, "deidentify_revision": 2}]',
        "d63d359406798edeaa9b0be19cd91f938ef79512d1b1cb2f6b9ebf7cdb11ac14",
        "e7dc172ed1e50d8bc6eb5d19235341d301f706c43870c3bd823e7efdac245076",
    ),
    "completion, held out": (
        "16e43e61093c3344be3fe6476cda2a6fe5643fa4758433ad1b701f495c5158ba",
        "12ecf521c0beec8b64e575e2cad4522b26b342ace3ea0995663506f40e2b026c",
        '["completion", 64, "error", {}]',
        "25a0f5be1efd226c614bc3ac2c9a4e403d200cb05c1876549261089de34740b6",
        None,
    ),
    "text, split": (
        "adc19fdaab4cd432be3ca91ac04e630fbacfc2eb2744561cf6afe45723ed170e",
        "69f2a07edce21b900c87e82d9af0041dda26fa13e4dab9b5202b12ac72c1dc6c",
        '["text", 16, "split", {}]',
        "f29f5ebc4df22cd3ae00bf224d36f8f704eab9d9073f32ceb0d33ef7a86c87e0",
        None,
    ),
    "text, not packed": (
        "c369098d6fa2be2310bfdc0727ee033977d7b30f29b471b01c16887d97925920",
        "3a06d58746869ef14b7ff3988dd652adb96169d5f747d48cf80e312be5513bc1",
        '["text", 512, "error", {}]',
        "3a06d58746869ef14b7ff3988dd652adb96169d5f747d48cf80e312be5513bc1",
        None,
    ),
    "classification": (
        "6daf0b6cdefc0bdf0a735ca1db499c348fab92149eaf52ec88ca7ad80989a93a",
        "896d1bd4ab029f2c8a42e822d7bd62a5ad24302276991318a22ed403dc730e77",
        '["classification", 64, "truncate", {"classification": {"kind": "single_label", '
        '"text_column": "text", "label_column": "label", "labels": null, "class_weights": null}, '
        '"labels": ["no", "yes"]}]',
        "896d1bd4ab029f2c8a42e822d7bd62a5ad24302276991318a22ed403dc730e77",
        "cae1208e19f55ab7ed7dd6cae6e7e1001d1b9bd12410f856ed8f492e2fd1d3d4",
    ),
    "classification, de-identified": (
        "bceee9b9af9b7dc0e9048d76d8ab9844250f1cef94c12e617a17d646f08eed7e",
        "015047aa3846c6480da8e8c2e1a303268f6b57240e792eb47203f5857aab43d8",
        '["classification", 64, "error", {"classification": {"kind": "multi_label", "text_column": "text", '
        '"label_column": "tags", "labels": ["a", "b"], "class_weights": null}, "labels": ["a", "b"], '
        '"deidentify": {"kinds": ["person", "date", "phone", "email", "url", "number"], "skip": [], '
        '"spacy_model": null, "seed": 0}, "deidentify_revision": 2}]',
        "015047aa3846c6480da8e8c2e1a303268f6b57240e792eb47203f5857aab43d8",
        None,
    ),
    "seq2seq": (
        "2e4cfa3afd0df9fff0aa75a6e94656b076ec91871d890b1bfbb914765bba569a",
        "cee71db366f438d6d0aac357782ce744bede463d1fc4aff0e1e88a2c05829e3e",
        '["seq2seq", 64, "drop", {"seq2seq": {"source_column": "source", "target_column": "target", '
        '"prefix": "to German: "}}]',
        "cee71db366f438d6d0aac357782ce744bede463d1fc4aff0e1e88a2c05829e3e",
        None,
    ),
    "preference": (
        "2f423c7d7c9099254bb69de372c027127141e62824a8c1787e92d2cac16cb468",
        "ba93633a318c7f655a5d23fd668f866ca930d17bf2f2e97206b1c83df26f5465",
        '["preference", 64, "error", {}]',
        "ba93633a318c7f655a5d23fd668f866ca930d17bf2f2e97206b1c83df26f5465",
        None,
    ),
    "preference, de-identified": (
        "0da969289b9997168861aaab644501b80508822cdf48f0d823e746e8f0fee233",
        "acf196b96148577e7a130704d290921c08a53cbc1ac43c866ac530b6d6f53be5",
        '["preference", 64, "error", {"deidentify": {"kinds": ["person"], "skip": [], "spacy_model": null, '
        '"seed": 0}, "deidentify_revision": 2}]',
        "acf196b96148577e7a130704d290921c08a53cbc1ac43c866ac530b6d6f53be5",
        None,
    ),
}


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    make_tokenizer(tmp_path / "tokenizer")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    tokenizer.fingerprint = FINGERPRINT
    return tokenizer


def test_every_task_has_an_encoder():
    assert list(ENCODERS) == list(TASKS)


@pytest.mark.parametrize("name", RECIPES)
def test_cache_keys_equal_those_of_earlier_versions(name, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file, text in FILES.items():
        Path(file).write_text(text, encoding="utf-8")
    recipe = Recipe(name="run", model={"base": "m"}, method={"kind": "full"}, **RECIPES[name])  # type: ignore[arg-type]
    sources = read_sources(recipe.data.train, recipe.data.validation, tmp_path)
    spec = replace(EncodingSpec.of(recipe, read_labels(recipe, sources)), revision=1)
    encoder = make_encoder(tokenizer, spec)
    retained = None
    if (file := recipe.evaluation.retain) is not None:
        task = first_task([Path(file)])
        too_long = "split" if task == "text" else "truncate"
        kept = replace(EncodingSpec.of(recipe, task=task, too_long=too_long), revision=1)
        retained = prepare_file(Path(file), kept, tokenizer).parent.name
    evaluated = prepare_file(Path(recipe.data.train[0]), spec, tokenizer).parent.name
    shape = json.dumps(json.loads(portable(encoder))["shape"])
    fingerprint = earlier_fingerprint(recipe, tokenizer, tmp_path)
    keys = (shard_id(sources[0].shard, encoder), fingerprint, shape, evaluated, retained)
    assert keys == RECORDED[name]
    # Only rows of the task text have the same tokens for certain.
    assert (prepare(recipe, tokenizer, recipe_dir=tmp_path).fingerprint == fingerprint) is (recipe.task == "text")


@pytest.mark.parametrize("task", ["chat", "completion", "text"])
def test_tokens_with_and_without_special_tokens_as_text_have_different_keys(task, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (file,) = {"text": ["text.txt"]}.get(task, [f"{task}.jsonl"])
    Path(file).write_text(FILES[file], encoding="utf-8")
    (source,) = read_sources([file], 0.0, tmp_path)
    specs = [EncodingSpec(task, 64, split_special_tokens=splits) for splits in (True, False)]
    keys = {shard_id(source.shard, make_encoder(tokenizer, spec)) for spec in specs}
    assert len(keys) == (1 if task == "text" else 2)
    assert all(EncodingSpec.from_json(spec.as_json()) == spec for spec in specs if task != "text")


@pytest.mark.parametrize("name", RECIPES)
def test_an_encoder_can_be_serialized_for_another_process(name, tmp_path):
    make_tokenizer(tmp_path / "tokenizer")
    recipe = Recipe(name="run", model={"base": "m"}, method={"kind": "full"}, **RECIPES[name])  # type: ignore[arg-type]
    labels = ["a", "b"] if recipe.task_facts.is_classifier else None
    encoder = make_encoder(Tokenizer.load(tmp_path / "tokenizer"), EncodingSpec.of(recipe, labels))
    copy = encoder_from(portable(encoder))
    assert type(copy) is type(encoder)
    assert copy.spec == encoder.spec
