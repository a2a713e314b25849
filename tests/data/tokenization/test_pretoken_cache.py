"""The pre-token cache gives the same tokens and offsets as the tokenizer, or is not used."""

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
    "It's what they've seen: I'll go, you're late; he'd 12345 x 3.14\n\n",
    "def f(a, b=1):\n    return a  +  b\n\n\tprint('ok')\r\n   # end\n",
] * 20


def byte_level(pre_tokenizer, normalizer=None) -> Tokenizer:
    """A byte-level BPE tokenizer with 400 tokens, so that words consist of one or several tokens."""
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
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), to_bytes])


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
CACHES = {name: make_pretoken_cache(tokenizer) for name, tokenizer in TOKENIZERS.items()}

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
def test_tokens_and_offsets_equal_those_of_the_tokenizer(name, text, shares):
    cache = CACHES[name]
    assert cache is not None, "a supported tokenizer"
    encoding = TOKENIZERS[name].encode(text, add_special_tokens=False)
    places = sorted(round(share * len(text)) for share in shares)
    ids, before = cache.encode(text, places)
    assert ids == encoding.ids
    edges = {0: 0, len(text): len(ids)} | {start: number for number, (start, _) in enumerate(encoding.offsets)}
    expected = [edges.get(place) for place in places]
    assert before == (None if None in expected else expected)


@pytest.mark.parametrize("name", KINDS)
def test_every_pair_and_run_of_ascii_characters_is_tokenized_equally(name):
    characters = [chr(code) for code in range(128)]
    texts = [one + two for one in characters for two in characters]
    texts += [f"a{one}{one}{two}b" for one in " \n\t\r\x0b\x0c\x1c'" for two in characters]
    encodings = TOKENIZERS[name].encode_batch(texts, add_special_tokens=False)
    for text, encoding in zip(texts, encodings, strict=True):
        assert CACHES[name].encode(text)[0] == encoding.ids, repr(text)  # type: ignore[union-attr]


def test_the_cache_size_is_bounded_and_eviction_does_not_change_tokens(monkeypatch):
    monkeypatch.setattr(module, "_WORDS_KEPT", 3)
    cache = make_pretoken_cache(TOKENIZERS["gpt2"])
    assert cache is not None
    text = "one two three four five six seven " + "x" * 100
    assert cache.encode(text)[0] == TOKENIZERS["gpt2"].encode(text, add_special_tokens=False).ids
    assert len(cache._tokens) <= 3
    assert not any(len(word) > 64 for word in cache._tokens)


@pytest.mark.parametrize(
    "other",
    [
        byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Lowercase()),
        byte_level(split(r"\w+|\W")),
        Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")),
    ],
    ids=["prefix space", "normalizer", "unknown pattern", "not byte-level"],
)
def test_other_tokenizers_have_no_cache(other):
    assert make_pretoken_cache(other) is None


def test_a_tokenizer_with_an_added_token_that_strips_spaces_has_no_cache():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_special_tokens([AddedToken("<strip>", lstrip=True, special=True)])
    assert make_pretoken_cache(tokenizer) is None


def test_a_cache_with_wrong_tokens_is_disabled(tiny_llama, chat_rows):
    corrupted, intact = (TunesmithTokenizer.load(tiny_llama) for _ in range(2))
    assert corrupted.pretokens is not None
    assert intact.pretokens is not None
    expected = [r.documents for r in LanguageModelEncoder(intact, EncodingSpec("chat", 512)).encode(chat_rows)]
    assert intact.pretokens is not None  # the first rows agree
    corrupted.pretokens._tokens["Question"] = corrupted.pretokens._tokens[" what"]
    corrupted.pretokens._tokens[" what"] = (7,)
    documents = [r.documents for r in LanguageModelEncoder(corrupted, EncodingSpec("chat", 512)).encode(chat_rows)]
    assert corrupted.pretokens is None
    assert documents == expected
