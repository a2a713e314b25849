"""Tokens and loss mask of a row, compared with transformers' apply_chat_template unless a token spans prompt and
answer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tests.data.spans import render_with_spans
from tunesmith.data.encoders.language_model import LanguageModelEncoder, prompt_tokens
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.outcomes import DROPPED, KEPT, MASKED, REJECTED, TRUNCATED
from tunesmith.data.refusal import Refusal
from tunesmith.data.tokenization.assistant_spans import exact_spans
from tunesmith.data.tokenization.chat_template import ChatTemplate
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError

ALL = ["chatml", "marked", "llama2", "llama3", "gemma", "phi3", "thinking"]
words = st.one_of(
    st.text(min_size=1, max_size=40),
    st.sampled_from(["\n\nyes ", " /INST] no", "assistant\n", "<|im_end", "42", "naïve 😀 \u200b", "a\tb"]),
)
answers = words.filter(
    lambda text: text.strip() and "\0" not in text and not any("\ufdd0" <= c <= "\ufdd4" for c in text)
)
conversations = st.lists(st.tuples(answers, answers, st.sampled_from([None, 0, 1])), min_size=1, max_size=3).filter(
    lambda turns: any(weight != 0 for _, _, weight in turns)
)


def row_of(turns):
    messages = []
    for question, answer, weight in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer} | ({} if weight is None else {"weight": weight}))
    return {"messages": messages}


def trained_texts(tokenizer, document):
    return [tokenizer.decode(document.tokens[start:stop], False) for start, stop in document.supervised]


def check_exact(tokenizer, row, document):
    """Check that the trained tokens decode to the trained text, and all tokens to the rendered text."""
    text, spans = render_with_spans(tokenizer.template, row["messages"])
    assert trained_texts(tokenizer, document) == [text[start:stop] for start, stop in spans]
    assert tokenizer.decode(document.tokens, False) == text
    whole = tokenizer.encodings([text])[0]
    for _, start, _ in exact_spans(tokenizer.template, row["messages"], None)[1]:
        token = whole.char_to_token(start)
        if token is None or whole.token_to_chars(token)[0] < start:
            return  # a token spans prompt and answer: the text is split there
    assert document.tokens == tokenizer.encode(text)


@pytest.mark.parametrize("name", ALL)
@given(turns=conversations)
@settings(max_examples=60, deadline=None)
def test_trained_tokens_are_the_assistant_messages_and_end_of_turn_tokens(tokenizers, name, turns):
    tokenizer = tokenizers[name]
    (result,) = LanguageModelEncoder(tokenizer, EncodingSpec("chat", 4096)).encode([row_of(turns)])
    assert result.outcome == (MASKED if any(weight == 0 for _, _, weight in turns) else KEPT), result.reason
    (document,) = result.documents
    check_exact(tokenizer, row_of(turns), document)
    closing = set(tokenizer.stop_token_ids)
    assert all(document.tokens[stop - 1] in closing for _, stop in document.supervised)


@given(turns=conversations)
@settings(max_examples=40, deadline=None)
def test_smollm2_rows_are_encoded_exactly(smollm2_tokenizer, turns):
    (result,) = LanguageModelEncoder(smollm2_tokenizer, EncodingSpec("chat", 4096)).encode([row_of(turns)])
    if result.outcome == REJECTED:
        text = smollm2_tokenizer.template.render(row_of(turns)["messages"])
        assert smollm2_tokenizer.decode(smollm2_tokenizer.encode(text), False) != text
    else:
        check_exact(smollm2_tokenizer, row_of(turns), result.documents[0])


def test_a_character_that_the_tokenizer_would_drop_is_rejected(smollm2_tokenizer, tiny):
    row = row_of([("q", "a\x1db", None)])
    (result,) = LanguageModelEncoder(smollm2_tokenizer, EncodingSpec("chat", 4096)).encode([row])
    assert result.outcome == REJECTED
    assert "U+001D" in result.reason
    assert LanguageModelEncoder(tiny, EncodingSpec("chat", 4096)).encode([row])[0].outcome == KEPT


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2):
    return Tokenizer.load(smollm2)


def test_tokens_equal_those_of_transformers(smollm2, smollm2_tokenizer, chat_rows):
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(smollm2)
    results = LanguageModelEncoder(smollm2_tokenizer, EncodingSpec("chat", 4096)).encode(chat_rows)
    for row, result in zip(chat_rows, results, strict=True):
        assert result.documents[0].tokens == oracle.apply_chat_template(row["messages"])["input_ids"]


def test_the_mask_equals_that_of_transformers_for_a_template_with_generation_blocks(tokenizers):
    from transformers import AutoTokenizer

    tokenizer = tokenizers["marked"]
    oracle = AutoTokenizer.from_pretrained(tokenizer.directory)
    row = row_of([("one", "two", None), ("three 3", "four, 4", None)])
    document = LanguageModelEncoder(tokenizer, EncodingSpec("chat", 4096)).encode([row])[0].documents[0]
    expected = oracle.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
    assert document.tokens == expected["input_ids"]
    mask = [any(start <= t < stop for start, stop in document.supervised) for t in range(len(document.tokens))]
    assert mask == [bool(flag) for flag in expected["assistant_masks"]]


@given(st.lists(conversations, min_size=1, max_size=6), st.sampled_from(ALL))
@settings(max_examples=30, deadline=None)
def test_a_row_has_the_same_tokens_in_any_batch(tokenizers, many, name):
    encoder = LanguageModelEncoder(tokenizers[name], EncodingSpec("chat", 4096))
    rows = [row_of(turns) for turns in many]
    assert encoder.encode(rows) == [encoder.encode([row])[0] for row in rows]


def test_an_answer_that_would_share_a_token_with_the_prompt_is_split_off(smollm2_tokenizer):
    row = row_of([("q", "\n\nyes", None)])
    document = LanguageModelEncoder(smollm2_tokenizer, EncodingSpec("chat", 4096)).encode([row])[0].documents[0]
    prompt = smollm2_tokenizer.template.render(row["messages"][:1], add_generation_prompt=True)
    (trained,) = document.supervised
    assert document.tokens[: trained[0]] == smollm2_tokenizer.encode(prompt)
    assert trained_texts(smollm2_tokenizer, document) == ["\n\nyes<|im_end|>"]


MERGING = {
    "words": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    "lines": "{% for m in messages %}{{ '#' + m['role'] + '\n\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '#assistant\n\n' }}{% endif %}",
}
"""Templates with which the end of the prompt and the first word of the answer may form one token."""


@pytest.fixture(scope="module")
def merging(make_tokenizer_directory) -> dict[str, Tokenizer]:
    return {name: Tokenizer.load(make_tokenizer_directory(source)) for name, source in MERGING.items()}


def check_prompts(tokenizer, turns) -> bool:
    """Check that the tokens before each answer equal the prompt tokens of the same messages; return whether the text
    was split for it."""
    messages = row_of(turns)["messages"]
    (result,) = LanguageModelEncoder(tokenizer, EncodingSpec("chat", 4096)).encode([{"messages": messages}])
    if result.outcome == REJECTED:
        return False
    trained = iter(result.documents[0].supervised)
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("weight", 1):
            start, _ = next(trained)
            earlier = [
                {key: m[key] for key in ("role", "content")} for m in messages[:number]
            ]  # no weights at inference
            text = tokenizer.template.render(earlier, add_generation_prompt=True)
            assert result.documents[0].tokens[:start] == prompt_tokens(tokenizer, text, earlier, None)
    return result.documents[0].tokens != tokenizer.encode(tokenizer.template.render(messages))


spoken = st.one_of(answers, st.sampled_from(["  the", "\nthe", "\n\n\nof", " ", "the work", "\n", "12", " of"]))
talks = st.lists(st.tuples(answers, spoken.filter(str.strip), st.sampled_from([None, 0])), min_size=2, max_size=4)


@pytest.mark.parametrize("name", [*MERGING, "chatml", "llama2", "gemma"])
@given(turns=talks)
@settings(max_examples=80, deadline=None)
def test_prompt_tokens_at_inference_equal_those_in_training(tokenizers, merging, name, turns):
    check_prompts({**tokenizers, **merging}[name], turns)


def test_a_turn_that_shares_a_token_is_also_split_in_later_prompts(merging, smollm2_tokenizer):
    for tokenizer in (merging["words"], smollm2_tokenizer):
        cut = []
        for answer in ("\n\nthe", " the", "  of work", "\nlicence"):
            cut += [check_prompts(tokenizer, [("q", answer, weight), ("r", "s", None)]) for weight in (None, 0)]
        assert any(cut)  # otherwise the test checks nothing


def test_tool_calls_are_trained_and_tools_are_rendered(make_tokenizer_directory):
    template = (
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
        "<|im_start|>{{ m.role }}\n{{ m.content if m.content is defined }}{% for c in m.tool_calls or [] %}"
        "{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = Tokenizer.load(make_tokenizer_directory(template))
    row = {
        "tools": [{"name": "add"}],
        "messages": [
            {"role": "user", "content": "2 + 2"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "add", "arguments": "[2, 2]"}}],
            },
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "Four."},
        ],
    }
    (result,) = LanguageModelEncoder(tokenizer, EncodingSpec("chat", 4096)).encode([row])
    assert trained_texts(tokenizer, result.documents[0]) == [
        '{"name": "add", "arguments": [2, 2]}<|im_end|>',
        "Four.<|im_end|>",
    ]
    assert '[{"name": "add"}]' in tokenizer.decode(result.documents[0].tokens, False)


def test_null_content_is_rejected_if_the_template_requires_text(smollm2_tokenizer):
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"name": "f"}]}]}
    (result,) = LanguageModelEncoder(smollm2_tokenizer, EncodingSpec("chat", 4096)).encode([row])
    assert result.outcome == REJECTED
    assert "cannot render this row" in result.reason


def test_only_the_completion_and_the_eos_token_are_trained(tokenizers):
    tokenizer = tokenizers["chatml"]
    encoder = LanguageModelEncoder(tokenizer, EncodingSpec("completion", 4096))
    for prompt, completion in (("Hello", " world"), ("", "x"), ("Hel", "lo"), ("a ", " b")):
        (result,) = encoder.encode([{"prompt": prompt, "completion": completion}])
        document = result.documents[0]
        assert trained_texts(tokenizer, document) == [completion + "</s>"]
        assert document.tokens[: document.supervised[0][0]] == tokenizer.encode(prompt)
        assert document.tokens[-1] == tokenizer.eos_token_id


def test_every_token_of_a_text_and_the_eos_token_are_trained(tokenizers):
    tokenizer = tokenizers["chatml"]
    (result,) = LanguageModelEncoder(tokenizer, EncodingSpec("text", 4096)).encode([{"text": "Once upon"}])
    document = result.documents[0]
    assert document.tokens == [*tokenizer.encode("Once upon"), tokenizer.eos_token_id]
    assert document.supervised_tokens() == len(document.tokens) - 1


@pytest.fixture(scope="module")
def spaced(tmp_path_factory):
    """A tokenizer that adds a space before every text, as in Llama 2 and T5, so that texts cannot be split."""
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=False))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"]
    alphabet = [chr(c) for c in range(33, 127)] + ["▁"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.train_from_iterator(["the quick brown fox jumps over the lazy dog Hello yes no"] * 20, trainer)
    backend.pre_tokenizer = None
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}{% else %}"
        "{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
    )
    template = ChatTemplate(source, "<s>", "</s>", special_tokens=["<s>", "</s>"], cut_tokens=())
    return Tokenizer(backend, named, template, (), "f")


def test_every_word_of_the_answer_is_trained_if_texts_cannot_be_split(spaced):
    assert not spaced.joins_pieces
    row = row_of([("Hello", "yes no", None), ("the dog", "Hello fox", None)])
    (result,) = LanguageModelEncoder(spaced, EncodingSpec("chat", 4096)).encode([row])
    document = result.documents[0]
    assert document.tokens == spaced.encode(spaced.template.render(row["messages"]))
    assert [text.strip() for text in trained_texts(spaced, document)] == ["yes no </s>", "Hello fox </s>"]
    (result,) = LanguageModelEncoder(spaced, EncodingSpec("completion", 4096)).encode(
        [{"prompt": "Hello ", "completion": "fox"}]
    )
    assert [text.strip() for text in trained_texts(spaced, result.documents[0])] == ["fox</s>"]


LONG = row_of([("a question", "an answer of several words " * 6, None), ("and", "more", None)])


def test_a_row_that_is_too_long_is_rejected_with_its_length(tokenizers):
    (result,) = LanguageModelEncoder(tokenizers["chatml"], EncodingSpec("chat", 20)).encode([LONG])
    assert result.outcome == REJECTED
    assert "max_seq_len is 20" in result.reason
    assert "data.too_long" in result.remedy


@pytest.mark.parametrize("limit", range(8, 90, 3))
def test_a_truncated_row_reports_its_loss_and_keeps_a_supervised_token(tokenizers, limit):
    whole = LanguageModelEncoder(tokenizers["chatml"], EncodingSpec("chat", 4096)).encode([LONG])[0].documents[0]
    (result,) = LanguageModelEncoder(tokenizers["chatml"], EncodingSpec("chat", limit, "truncate")).encode([LONG])
    if result.outcome == REJECTED:
        assert whole.supervised[0][0] >= limit
        assert "it would have no supervised token" in result.reason
        return
    (document,) = result.documents
    assert result.outcome == (TRUNCATED if limit < len(whole.tokens) else KEPT)
    assert document.tokens == whole.tokens[:limit]
    assert document.supervised_tokens() >= 1
    assert result.lost_tokens == len(whole.tokens) - len(document.tokens)
    assert result.lost_supervised == whole.supervised_tokens() - document.supervised_tokens()
    if result.lost_supervised:
        assert f"{result.lost_supervised} of them supervised" in result.reason


def test_a_row_that_is_too_long_can_be_dropped(tokenizers):
    (result,) = LanguageModelEncoder(tokenizers["chatml"], EncodingSpec("chat", 20, "drop")).encode([LONG])
    assert (result.outcome, result.documents) == (DROPPED, [])
    assert result.lost_tokens > 20


@given(st.integers(8, 60), st.text(alphabet="abc def", min_size=1, max_size=600).filter(str.strip))
@settings(max_examples=50, deadline=None)
def test_splitting_a_text_keeps_every_token(tokenizers, limit, text):
    tokenizer = tokenizers["chatml"]
    (result,) = LanguageModelEncoder(tokenizer, EncodingSpec("text", limit, "split")).encode([{"text": text}])
    assert [token for document in result.documents for token in document.tokens] == [
        *tokenizer.encode(text),
        tokenizer.eos_token_id,
    ]
    assert all(len(document.tokens) <= limit and document.supervised_tokens() >= 1 for document in result.documents)


def test_an_unsuitable_tokenizer_is_an_input_error(make_tokenizer_directory, tokenizers):
    with pytest.raises(InputError, match="no chat template"):
        LanguageModelEncoder(Tokenizer.load(make_tokenizer_directory(None)), EncodingSpec("chat", 64))
    with pytest.raises(InputError, match="cannot be split"):
        LanguageModelEncoder(tokenizers["chatml"], EncodingSpec("chat", 64, "split"))
    bare = Tokenizer(tokenizers["chatml"].backend, {}, None, (), "")
    with pytest.raises(InputError, match="no eos token"):
        LanguageModelEncoder(bare, EncodingSpec("text", 64))


def test_refusals_pass_through_and_rows_without_supervised_tokens_are_rejected(tokenizers):
    encoder = LanguageModelEncoder(tokenizers["chatml"], EncodingSpec("chat", 64))
    one, other = encoder.encode([Refusal("empty", "why", "what to do"), row_of([("q", "a", 0)])])
    assert (one.outcome, one.reason, one.remedy) == (REJECTED, "why", "what to do")
    assert "no supervised token" in other.reason
