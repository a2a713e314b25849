"""Preference rows: the context of both answers, and answers that repeat it."""

import json

import pytest

from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.tokenization.tokenizer import Tokenizer

QUESTION = {"role": "user", "content": "Hi"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Good day.", "What?"))
SYSTEM = {"role": "system", "content": "Answer as a pirate."}


@pytest.fixture
def encode(tiny_llama):
    encoder = make_encoder(Tokenizer.load(tiny_llama), EncodingSpec("preference", 128))
    return lambda *rows: encoder.encode(json.loads(json.dumps(rows)))


def tokens(result):
    assert result.outcome == "kept", result.reason
    return [document.tokens for document in result.documents]


@pytest.mark.parametrize("prompt", ["Hi", [QUESTION]])
def test_answers_that_repeat_the_prompt_do_not_contain_it_twice(encode, prompt):
    whole, answers = encode(
        {"prompt": prompt, "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
        {"prompt": "Hi", "chosen": "Good day.", "rejected": "What?"},
    )
    assert tokens(whole) == tokens(answers)
    assert whole.documents[0].supervised == answers.documents[0].supervised


def test_conversations_that_do_not_begin_with_the_prompt_are_rejected(encode):
    other = {"role": "user", "content": "Hello"}
    (result,) = encode({"prompt": "Hi", "chosen": [other, GOOD], "rejected": [other, BAD]})
    assert result.outcome == "rejected"
    assert 'do not begin with "prompt"' in result.reason


@pytest.mark.parametrize("keys", [{"train": True}, {"trainable": True}, {"loss": 1}, {"masked": False}, {"weight": 1}])
def test_training_keys_of_earlier_answers_do_not_contradict(encode, keys):
    """Only the answers that are compared are trained."""
    answers = {"chosen": "Good day.", "rejected": "What?"}
    marked, plain = encode(*({"prompt": [QUESTION, GOOD | more, QUESTION], **answers} for more in (keys, {})))
    assert tokens(marked) == tokens(plain)
    assert marked.documents[0].supervised == plain.documents[0].supervised


def test_a_system_message_next_to_the_prompt_is_part_of_the_context(encode):
    separate, inside, without = encode(
        {"system": SYSTEM["content"], "prompt": "Hi", "chosen": "Good day.", "rejected": "What?"},
        {"prompt": [SYSTEM, QUESTION], "chosen": "Good day.", "rejected": "What?"},
        {"prompt": "Hi", "chosen": "Good day.", "rejected": "What?"},
    )
    assert tokens(separate) == tokens(inside) != tokens(without)


def test_rows_with_images_are_rejected(encode):
    (result,) = encode({"prompt": "Hi", "chosen": "Good day.", "rejected": "What?", "images": ["a.png"]})
    assert (result.outcome, result.code) == ("rejected", "unsupported_key")
