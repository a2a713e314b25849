"""Preference rows in the formats of other tools have the same tokens as their plain form."""

import json
import re

import pytest

from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.tokenization.tokenizer import Tokenizer

SYSTEM = {"role": "system", "content": "Be kind."}
FIRST, EARLIER, QUESTION = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And now?"},
)
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Good day.", "What?"))
HUMAN, GPT, AGAIN = (
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello."},
    {"from": "human", "value": "And now?"},
)
ANSWERS = {"chosen": {"from": "gpt", "value": "Good day."}, "rejected": {"from": "gpt", "value": "What?"}}
TEXTS = {"chosen": "Good day.", "rejected": "What?"}
PLAIN = {"prompt": [FIRST, EARLIER, QUESTION], "chosen": [GOOD], "rejected": [BAD]}
DIALOG = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And now?\n\nAssistant:"


@pytest.fixture
def encode(tiny_llama):
    encoder = make_encoder(Tokenizer.load(tiny_llama), EncodingSpec("preference", 128))
    return lambda *rows: encoder.encode(json.loads(json.dumps(rows)))


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [HUMAN, GPT, AGAIN], **ANSWERS},
        {"conversations": [FIRST, EARLIER, QUESTION], "chosen": GOOD, "rejected": BAD},
        {"messages": [FIRST, EARLIER, QUESTION], "chosen": GOOD, "rejected": BAD},
        {"messages": [FIRST, EARLIER, QUESTION], **TEXTS},
        {"prompt": [HUMAN, GPT, AGAIN], **ANSWERS},
        {"prompt": [FIRST, EARLIER, QUESTION], "chosen": GOOD, "rejected": BAD},
        {"instruction": "And now?", "history": [["Hi", "Hello."]], **TEXTS},
        {"chosen": [HUMAN, GPT, AGAIN, ANSWERS["chosen"]], "rejected": [HUMAN, GPT, AGAIN, ANSWERS["rejected"]]},
        {"chosen": f"{DIALOG} Good day.", "rejected": f"{DIALOG} What?"},
        {"conversations": [HUMAN], **PLAIN},  # "prompt" is the prompt
        # Whole conversations contain their prompt; "messages" next to them may be one of them.
        {"messages": [FIRST, GOOD], **{key: [*PLAIN["prompt"], *PLAIN[key]] for key in ("chosen", "rejected")}},
    ],
)
def test_every_format_has_the_same_tokens(encode, row):
    read, plain = encode(row, PLAIN)
    assert read.outcome == "kept", read.reason
    assert read.documents == plain.documents
    assert read.key == plain.key


def test_instruction_and_input_are_one_question_with_the_system_message(encode):
    read, plain = encode(
        {"instruction": "Add", "input": "1 2", "system": "Be kind.", **TEXTS},
        {"prompt": [SYSTEM, {"role": "user", "content": "Add\n\n1 2"}], **TEXTS},
    )
    assert read.outcome == "kept", read.reason
    assert read.documents == plain.documents


def test_without_a_template_dialogs_and_instructions_are_texts(tiny_llama):
    tokenizer = Tokenizer.load(tiny_llama)
    tokenizer.template = None
    encoder = make_encoder(tokenizer, EncodingSpec("preference", 256))
    dialog, texts, alpaca = encoder.encode(
        [
            {"chosen": f"{DIALOG} Good day.", "rejected": f"{DIALOG} What?"},
            {"prompt": DIALOG, "chosen": " Good day.", "rejected": " What?"},
            {"instruction": "Add", **TEXTS},
        ]
    )
    assert dialog.documents == texts.documents
    assert "### Instruction:\nAdd" in tokenizer.decode(alpaca.documents[0].tokens)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (TEXTS, '"prompt" is missing'),
        ({"chosen": f"{DIALOG} Good day.", "rejected": "What?"}, '"prompt" is missing'),
        ({"chosen": "\n\nHuman: A\n\nAssistant: b", "rejected": "\n\nHuman: C\n\nAssistant: b"}, "begin differently"),
        ({"conversations": [HUMAN], "chosen": ANSWERS["chosen"]}, '"rejected" is missing'),
        ({"conversations": [{"from": "humn", "value": "q"}], **ANSWERS}, "unknown role 'humn'; did you mean \"human\""),
        ({"conversations": [HUMAN], **ANSWERS, "chosen": {"from": "gpt", "value": ""}}, r"chosen\[0\]: .* is empty"),
        ({"conversations": [HUMAN], **ANSWERS, "chosen": {"form": "gpt", "value": "x"}}, 'no "role"'),
        ({"messages": [QUESTION], "chosen": [FIRST, GOOD], "rejected": BAD}, "do not begin with"),
    ],
)
def test_invalid_rows_are_rejected_with_the_accepted_formats(encode, row, reason):
    (result,) = encode(row)
    assert result.outcome == "rejected"
    assert re.search(reason, result.reason), result.reason
    if "missing" in reason:
        assert '"instruction", "conversations" or "messages"' in result.remedy
