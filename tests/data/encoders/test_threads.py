"""An encoder shared by many threads gives the same tokens as in one thread."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tunesmith.data.encoders.language_model import LanguageModelEncoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.tokenization import chat_template
from tunesmith.data.tokenization.tokenizer import Tokenizer

NUM_THREADS, ROUNDS = 8, 12
SPEC = EncodingSpec("chat", 4096)


@pytest.fixture(autouse=True)
def _switch_threads_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def conversations(number: int) -> list[dict[str, object]]:
    """Rows with many sequences of roles; some words are not ASCII, so that both tokenization paths are used."""
    rng = random.Random(number)
    words = [*["the", "licence", "grants", "you", "a", "right"], "use,", "für", "naïve", "東京", "3.14", "ok?"]
    rows = []
    for _ in range(96):
        messages = [{"role": "system", "content": f"Number {rng.randrange(4)}."}] if rng.random() < 0.5 else []
        for _ in range(rng.randint(1, 6)):
            messages.append({"role": "user", "content": " ".join(rng.choices(words, k=rng.randint(1, 9)))})
            messages.append({"role": "assistant", "content": " ".join(rng.choices(words, k=rng.randint(1, 9)))})
        rows.append({"messages": messages})
    return rows


def tokens_of(encoder: LanguageModelEncoder, rows: list[dict[str, object]]) -> list[object]:
    return [[(d.tokens, d.supervised) for d in result.documents] or result.reason for result in encoder.encode(rows)]


def by_threads(encoder: LanguageModelEncoder, batches: list[list[dict[str, object]]]) -> list[list[object]]:
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        return list(threads.map(lambda rows: tokens_of(encoder, rows), batches))


def test_eight_threads_give_the_same_tokens_as_one(make_tokenizer_directory, tokenizers, monkeypatch):
    """Few layouts are cached, so that threads constantly evict each other's."""
    monkeypatch.setattr(chat_template, "_LAYOUTS_KEPT", 2)
    batches = [conversations(number) for number in range(NUM_THREADS)]
    source = tokenizers["chatml"].template.source
    alone = LanguageModelEncoder(tokenizers["chatml"], SPEC)
    expected = [tokens_of(alone, rows) for rows in batches]
    for _ in range(ROUNDS):
        shared = LanguageModelEncoder(Tokenizer.load(make_tokenizer_directory(source)), SPEC)
        assert by_threads(shared, batches) == expected


def test_no_thread_uses_a_wrong_pre_token_cache(tiny_llama):
    """The check of the first rows detects it; other threads wait for the check."""
    batches = [[{"messages": [{"role": "user", "content": f"q {number} {i}"}, {"role": "assistant", "content": "what"}]}
                for i in range(80)] for number in range(NUM_THREADS)]  # fmt: skip
    reference = LanguageModelEncoder(Tokenizer.load(tiny_llama), SPEC)
    expected = [tokens_of(reference, rows) for rows in batches]
    for _ in range(ROUNDS):
        tokenizer = Tokenizer.load(tiny_llama)
        assert tokenizer.pretokens is not None
        tokenizer.pretokens._tokens["what"] = (7,)
        encoder = LanguageModelEncoder(tokenizer, SPEC)
        assert by_threads(encoder, batches) == expected
        assert tokenizer.pretokens is None
