"""Classifiers on packed texts and encoder-decoders on padded rows give the logits of transformers row by row."""

import pytest
import torch
import transformers

from tunesmith.errors import InputError
from tunesmith.modeling.loading.heads import Labels, load_classifier
from tunesmith.modeling.losses.classification import ClassificationLoss
from tunesmith.modeling.losses.sequence import teacher_forced

SMALL = {"vocab_size": 96, "max_position_embeddings": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODERS = {
    "Bert": {**SMALL, "hidden_size": 32, "intermediate_size": 48},
    "Roberta": {**SMALL, "hidden_size": 32, "intermediate_size": 48, "pad_token_id": 1},
    "DistilBert": {
        "vocab_size": 96,
        "max_position_embeddings": 64,
        "n_layers": 2,
        "n_heads": 4,
        "dim": 32,
        "hidden_dim": 48,
    },
    "Llama": {**SMALL, "hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0},
}
PAIRS = {
    "T5": {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "MT5": {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "Bart": {
        "vocab_size": 96,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "max_position_embeddings": 64,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
    },
}
LENGTHS = [5, 9, 3]


def made(kind: str, name: str, shape: dict, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**shape, **more)
    return getattr(transformers, f"{name}For{kind}")(config).eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_packed_texts_have_the_logits_of_separate_texts(name):
    model = made("SequenceClassification", name, ENCODERS[name], num_labels=3)
    texts = [torch.randint(5, 96, (length,)) for length in LENGTHS]
    with torch.no_grad():
        plain = torch.stack([model(input_ids=text[None]).logits[0] for text in texts])
        loss = ClassificationLoss(model, Labels("single_label", ("a", "b", "c"), 0), None)
        positions = torch.cat([torch.arange(length) for length in LENGTHS])
        packed = loss.logits(torch.cat(texts), positions, LENGTHS)
    assert plain.std() > 1e-3
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-5)


def test_packed_pairs_have_the_token_types_of_separate_pairs():
    """BERT embeds whether a token belongs to the second text; texts that are no pairs have type 0."""
    model = made("SequenceClassification", "Bert", ENCODERS["Bert"], num_labels=3, initializer_range=0.5)
    separator = 4
    first, second = torch.randint(5, 96, (4,)), torch.randint(5, 96, (6,))
    end = torch.tensor([separator])
    pair, single = torch.cat([first, end, second, end]), torch.cat([second, end])
    types = torch.tensor([0] * 5 + [1] * 7)
    texts = [single, pair, single]
    lengths = [len(text) for text in texts]
    with torch.no_grad():
        plain = torch.cat(
            [
                model(input_ids=single[None]).logits,
                model(input_ids=pair[None], token_type_ids=types[None]).logits,
                model(input_ids=single[None]).logits,
            ]
        )
        untyped = model(input_ids=pair[None]).logits
        loss = ClassificationLoss(model, Labels("single_label", ("a", "b", "c"), 0, separator), None)
        positions = torch.cat([torch.arange(length) for length in lengths])
        packed = loss.logits(torch.cat(texts), positions, lengths)
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-5)
    assert (untyped - packed[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", PAIRS)
def test_padded_rows_have_the_logits_of_separate_rows(name):
    more = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    model = made("ConditionalGeneration", name, PAIRS[name], **more)
    sources = [torch.randint(5, 96, (length,)) for length in LENGTHS]
    targets = [torch.randint(5, 96, (length,)) for length in (4, 2, 6)]
    padded = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
    with torch.no_grad():
        together = teacher_forced(model, sources, padded)
        for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
            begun = torch.cat([torch.tensor([0]), target[:-1]])
            alone = model(input_ids=source[None], decoder_input_ids=begun[None]).logits[0]
            torch.testing.assert_close(together[number, : len(target)], alone, rtol=0, atol=1e-4)


def test_only_head_weights_may_have_another_shape(tmp_path):
    from safetensors.torch import load_file, save_file

    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, num_labels=4
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    labels = Labels("single_label", ("a", "b", "c"), 1)
    assert load_classifier(tmp_path, labels, dtype=torch.float32).classifier.weight.shape == (3, 8)
    weights = load_file(tmp_path / "model.safetensors")
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    weights[name] = torch.zeros(13, 8)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=name):
        load_classifier(tmp_path, labels, dtype=torch.float32)
