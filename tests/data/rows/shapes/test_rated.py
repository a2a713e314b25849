"""KTO rows in the formats of other tools have the same tokens as their plain form."""

import json

import pytest

from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.named_label import NamedLabel
from tunesmith.data.tokenization.tokenizer import Tokenizer

QUESTION, ANSWER = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good morning."}
HUMAN, GPT = {"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good morning."}
PLAIN = {"prompt": "Hello", "completion": "Good morning.", "label": True}


@pytest.fixture
def encoder(tiny_llama):
    return make_encoder(Tokenizer.load(tiny_llama), EncodingSpec("kto", 128))


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [HUMAN, GPT], "label": True},
        {"conversations": [HUMAN, GPT], "kto_tag": True},
        {"conversations": [QUESTION, ANSWER], "label": True},
        {"conversations": [HUMAN], "completion": GPT, "label": True},
        {"messages": [QUESTION, ANSWER], "kto_tag": True},
        {"messages": [HUMAN, GPT], "kto_tag": True, "label": True},
        {"instruction": "Hello", "output": "Good morning.", "kto_tag": True},
        {"instruction": "Hello", "input": "", "history": [], "output": "Good morning.", "label": True},
        {"prompt": [HUMAN], "completion": [GPT], "label": True},
        {"prompt": "Hello", "completion": ANSWER, "label": True},
    ],
)
def test_every_format_has_the_same_tokens(encoder, row):
    read, plain = encoder.encode(json.loads(json.dumps([row, PLAIN])))
    assert read.outcome == "kept", read.reason
    assert read.documents == plain.documents
    assert read.key == plain.key


@pytest.mark.parametrize(
    ("label", "rating"),
    [
        (1, 1),
        (0, 0),
        (1.0, 1),
        ("true", 1),
        ("False", 0),
        (" TRUE ", 1),
        ("0", 0),
        (NamedLabel(1, "bad"), 1),
        (NamedLabel(0, "true"), 1),
    ],
)
def test_labels_are_booleans_numbers_or_their_text(encoder, label, rating):
    (result,) = encoder.encode([PLAIN | {"label": label}])
    assert [document.tokens[-1] for document in result.documents] == [rating]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (PLAIN | {"kto_tag": False}, "contradict"),
        ({"instruction": "Hello", "label": True}, '"completion" is missing'),
        ({"conversations": [HUMAN, GPT, HUMAN], "label": True}, "a role other than assistant"),
        (PLAIN | {"label": "yes"}, "not a boolean"),
        (PLAIN | {"label": 0.5}, "not a boolean"),
        ({"text": "x", "label": True}, '"prompt" is missing'),
    ],
)
def test_invalid_rows_are_rejected_with_the_accepted_formats(encoder, row, reason):
    (result,) = encoder.encode([row])
    assert result.outcome == "rejected"
    assert reason in result.reason
    if "missing" in reason:
        assert '"instruction" and "output"' in result.remedy
