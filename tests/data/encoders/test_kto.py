"""KTO rows: an answer and its label."""

import json

import pytest

from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.tokenization.tokenizer import Tokenizer

QUESTION = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Good morning."}
ROW = {"prompt": "Hello", "completion": "Good morning.", "label": True}


@pytest.fixture
def encoder(tiny_llama):
    return make_encoder(Tokenizer.load(tiny_llama), EncodingSpec("kto", 128))


def test_every_row_format_gives_the_same_tokens(encoder, tiny_llama):
    rows = [
        ROW,
        {"prompt": [QUESTION], "completion": [ANSWER], "label": True},
        {"messages": [QUESTION], "completion": [ANSWER], "label": True},
        {"messages": [QUESTION], "completion": "Good morning.", "label": True},
        {"messages": [QUESTION, ANSWER], "label": True},
    ]
    results = encoder.encode(json.loads(json.dumps(rows)))
    assert [result.outcome for result in results] == ["kept"] * len(rows), [result.reason for result in results]
    chat = make_encoder(Tokenizer.load(tiny_llama), EncodingSpec("chat", 128))
    (plain,) = chat.encode([{"messages": [QUESTION, ANSWER]}])
    for result in results:
        assert [d.tokens for d in result.documents] == [[*plain.documents[0].tokens, 1]]
        assert result.documents[0].supervised == plain.documents[0].supervised
        assert result.key == results[0].key


def test_the_label_is_a_token_and_part_of_the_key(encoder):
    good, bad = encoder.encode([ROW, {**ROW, "label": False}])
    assert good.documents[0].tokens[:-1] == bad.documents[0].tokens[:-1]
    assert [result.documents[0].tokens[-1] for result in (good, bad)] == [1, 0]
    assert good.key != bad.key


def test_earlier_answers_of_a_conversation_are_not_trained(encoder):
    again = {"role": "user", "content": "And now?"}
    result, alone = encoder.encode([{"messages": [QUESTION, ANSWER, again, ANSWER], "label": False}, ROW])
    assert result.outcome == "kept"
    assert len(result.documents[0].supervised) == 1
    (start, stop), (first, last) = result.documents[0].supervised[0], alone.documents[0].supervised[0]
    assert result.documents[0].tokens[start:stop] == alone.documents[0].tokens[first:last]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "a", "completion": "b"}, '"label" is missing'),
        ({**ROW, "label": "good"}, "not a boolean"),
        ({**ROW, "label": 2}, "not a boolean"),
        ({"completion": "b", "label": True}, '"prompt" is missing'),
        ({"prompt": "a", "completion": "", "label": True}, '"completion" is missing or empty'),
        ({"prompt": 3, "completion": "b", "label": True}, '"prompt" is neither'),
        ({"messages": [QUESTION, ANSWER, QUESTION], "label": True}, "a role other than assistant"),
        ({"messages": [ANSWER], "label": True}, '"prompt" is missing or empty'),
        ([1], "not an object"),
        ({**ROW, "completion": "c " * 400}, "too long"),
    ],
)
def test_an_invalid_row_is_rejected_with_a_reason(encoder, row, why):
    (result,) = encoder.encode([row])
    assert result.outcome == "rejected"
    assert why in result.reason
    assert result.remedy


@pytest.mark.parametrize(("too_long", "outcome"), [("truncate", "truncated"), ("drop", "dropped")])
def test_a_long_row_is_truncated_before_its_label(tiny_llama, too_long, outcome):
    encoder = make_encoder(Tokenizer.load(tiny_llama), EncodingSpec("kto", 64, too_long))
    (result,) = encoder.encode([{**ROW, "completion": "c " * 400}])
    assert result.outcome == outcome
    assert "the label takes one more token" in result.reason
    if result.documents:
        assert len(result.documents[0].tokens) == 64
        assert result.documents[0].tokens[-1] == 1


def test_without_a_chat_template_strings_are_prompt_and_completion(tiny_llama):
    tokenizer = Tokenizer.load(tiny_llama)
    tokenizer.template = None
    encoder = make_encoder(tokenizer, EncodingSpec("kto", 128))
    plain, messages = encoder.encode([ROW, {"messages": [QUESTION, ANSWER], "label": True}])
    (completion,) = make_encoder(tokenizer, EncodingSpec("completion", 128)).encode(
        [{"prompt": "Hello", "completion": "Good morning."}]
    )
    assert plain.documents[0].tokens == [*completion.documents[0].tokens, 1]
    assert messages.outcome == "rejected"
    assert "no chat template" in messages.reason
