"""The separator of a pair is read from the tokenizer of a model that embeds token types."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import BertProcessing, RobertaProcessing, Sequence, TemplateProcessing

from tunesmith.modeling.base_model.text_pairs import pair_separator

TOKENS = [("[CLS]", 2), ("[SEP]", 3)]
TYPED = TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=TOKENS)


@pytest.mark.parametrize(
    ("processor", "separator"),
    [
        (TYPED, 3),
        (Sequence([TYPED]), 3),
        (BertProcessing(("[SEP]", 3), ("[CLS]", 2)), 3),
        (RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)), None),
        (TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=TOKENS), None),  # nothing between the texts
        (TemplateProcessing(single="$A", pair="[CLS] $A:0 [SEP] $B:0", special_tokens=TOKENS), None),
        (None, None),
    ],
)
def test_the_token_between_the_texts_of_a_typed_pair(tmp_path, processor, separator):
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "[CLS]": 2, "[SEP]": 3}, unk_token="[UNK]"))
    if processor is not None:
        tokenizer.post_processor = processor
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert pair_separator(tmp_path, "bert") == separator
    assert pair_separator(tmp_path, "roberta") is None
    assert pair_separator(tmp_path / "none", "bert") is None
