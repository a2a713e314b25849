"""Words seen before give the tokens that the tokenizer itself gives, and the same edges; else nothing is claimed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tunesmith.data.encoders.language_model import LanguageModelEncoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.tokenization import pretoken_cache as module
from tunesmith.data.tokenization.pretoken_cache import GPT2, LLAMA3, QWEN2, make_pretoken_cache
from tunesmith.data.tokenization.tokenizer import Tokenizer as TunesmithTokenizer

MARKS = ["<|im_start|>", "<|im_end|>", "<|im", "<tool>"]
TEXT = [
    "It's what they've said: I'll go, you're late; he'd 12345 x 3.14\n\n",
    "def f(a, b=1):\n    return a  +  b\n\n\tprint('ok')\r\n   # end\n",
] * 20


def byte_level(pre_tokenizer, normalizer=None) -> Tokenizer:
    """A byte-level BPE of 400 tokens, so that words are of one token and of several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def split(pattern: str):
    after = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), after])


KINDS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt2 split": split(GPT2),
    "llama3": split(LLAMA3),
    "qwen2": split(QWEN2),
}
TOKENIZERS = {name: byte_level(kind) for name, kind in KINDS.items()}
WORDS = {name: make_pretoken_cache(tokenizer) for name, tokenizer in TOKENIZERS.items()}

pieces = st.one_of(
    st.sampled_from(
        [*MARKS, " ", "  ", "\n", "\r\n", "\n\n", "\t", "'s", "'LL", "12", "a", "It's", " the", "==", "|>"]
    ),
    st.text(st.characters(max_codepoint=127), max_size=6),
)
texts = st.lists(pieces, max_size=12).map("".join)


@pytest.mark.parametrize("name", KINDS)
@given(text=texts, shares=st.lists(st.floats(0, 1), max_size=4))
@settings(max_examples=300, deadline=None)
def test_tokens_and_edges_are_those_of_the_tokenizer(name, text, shares):
    words = WORDS[name]
    assert words is not None, "a tokenizer of a known kind"
    encoding = TOKENIZERS[name].encode(text, add_special_tokens=False)
    places = sorted(round(share * len(text)) for share in shares)
    ids, before = words.encode(text, places)
    assert ids == encoding.ids
    edges = {0: 0, len(text): len(ids)} | {start: number for number, (start, _) in enumerate(encoding.offsets)}
    expected = [edges.get(place) for place in places]
    assert before == (None if None in expected else expected)


@pytest.mark.parametrize("name", KINDS)
def test_every_pair_and_run_of_ascii_characters(name):
    characters = [chr(code) for code in range(128)]
    written = [one + two for one in characters for two in characters]
    written += [f"a{one}{one}{two}b" for one in " \n\t\r\x0b\x0c\x1c'" for two in characters]
    encodings = TOKENIZERS[name].encode_batch(written, add_special_tokens=False)
    for text, encoding in zip(written, encodings, strict=True):
        assert WORDS[name].encode(text)[0] == encoding.ids, repr(text)  # type: ignore[union-attr]


def test_what_is_kept_is_bounded_and_forgetting_changes_nothing(monkeypatch):
    monkeypatch.setattr(module, "_WORDS_KEPT", 3)
    words = make_pretoken_cache(TOKENIZERS["gpt2"])
    assert words is not None
    text = "one two three four five six seven " + "x" * 100
    assert words.encode(text)[0] == TOKENIZERS["gpt2"].encode(text, add_special_tokens=False).ids
    assert len(words._tokens) <= 3
    assert not any(len(word) > 64 for word in words._tokens)


@pytest.mark.parametrize(
    "other",
    [
        byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Lowercase()),
        byte_level(split(r"\w+|\W")),
        Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")),
    ],
    ids=["a space first", "a normalizer", "a pattern of its own", "not byte-level"],
)
def test_other_tokenizers_are_left_to_themselves(other):
    assert make_pretoken_cache(other) is None


def test_an_added_token_that_takes_spaces_with_it_is_left_to_the_tokenizer():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_special_tokens([AddedToken("<strip>", lstrip=True, special=True)])
    assert make_pretoken_cache(tokenizer) is None


def test_words_that_would_give_other_tokens_are_not_used(tiny_llama, chat_rows):
    told, sound = (TunesmithTokenizer.load(tiny_llama) for _ in range(2))
    assert told.pretokens is not None
    assert sound.pretokens is not None
    before = [result.documents for result in LanguageModelEncoder(sound, EncodingSpec("chat", 512)).encode(chat_rows)]
    assert sound.pretokens is not None  # the first rows agree
    told.pretokens._tokens["Question"] = told.pretokens._tokens[" what"]
    told.pretokens._tokens[" what"] = (7,)
    found = [result.documents for result in LanguageModelEncoder(told, EncodingSpec("chat", 512)).encode(chat_rows)]
    assert told.pretokens is None
    assert found == before
