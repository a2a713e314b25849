import numpy as np
import pytest
import torch

from tunesmith.data.index.token_index import write_index
from tunesmith.data.tokenization.chat_template import ChatTemplate
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.evaluation.answers import answer, prompt_length, question_of, sample_prompts, spread
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.losses.causal import CausalLoss

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
WITH_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
)


def chat(tokenizer: Tokenizer, turns: list[tuple[str, str]], row: int) -> tuple:
    tokens, supervised = [], []
    for question, reply in turns:
        prompt = tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        answer_tokens, separator = tokenizer.encode(f"{reply}<|im_end|>"), tokenizer.encode("\n")
        tokens += prompt + answer_tokens + separator
        supervised += [False] * len(prompt) + [True] * len(answer_tokens) + [False] * len(separator)
    return tokens, supervised, row


def test_chat_prompt_ends_before_the_last_answer(tiny_llama, tmp_path):
    tokenizer = Tokenizer.load(tiny_llama)
    documents = [
        chat(tokenizer, [("What is this?", "A licence.")], 5),
        chat(tokenizer, [("Hello", "Yes?"), ("And who\nwrote it?", "The Foundation did.")], 9),
    ]
    first, second = sample_prompts(write_index(tmp_path, documents, max_seq_len=512), tokenizer, 2)
    assert (first.row, first.text, first.reference) == (5, "What is this?", "A licence.")
    assert (second.row, second.text, second.reference) == (9, "And who\nwrote it?", "The Foundation did.")
    whole = tokenizer.decode(second.tokens, skip_special_tokens=False)
    assert whole.startswith("<|im_start|>user\nHello")
    assert whole.endswith("<|im_start|>assistant\n")


def test_prompts_are_deterministic_and_spread_over_the_index(tiny_llama, tmp_path):
    tokenizer = Tokenizer.load(tiny_llama)
    documents = [chat(tokenizer, [(f"Question {number}", "Yes.")], number) for number in range(100)]
    index = write_index(tmp_path, documents, max_seq_len=512)
    rows = [prompt.row for prompt in sample_prompts(index, tokenizer, 4)]
    assert rows == [prompt.row for prompt in sample_prompts(index, tokenizer, 4)] == sorted(rows)
    assert [row // 25 for row in rows] == [0, 1, 2, 3]
    assert len(sample_prompts(index, tokenizer, 1000)) == 100


def test_rows_without_a_usable_prompt_are_skipped(tiny_llama, tmp_path):
    tokenizer = Tokenizer.load(tiny_llama)
    untrained = tokenizer.encode("none of this is trained")
    documents = [
        (untrained, [False] * len(untrained), 0),
        chat(tokenizer, [("word " * 60, "Long.")], 1),
        chat(tokenizer, [("Short", "Yes.")], 2),
    ]
    prompts = sample_prompts(write_index(tmp_path, documents, max_seq_len=512), tokenizer, 3, max_tokens=40)
    assert [prompt.row for prompt in prompts] == [2]


def test_plain_text_is_continued_from_its_middle(tiny_llama, tmp_path):
    tokenizer = Tokenizer.load(tiny_llama)
    text = "You may reproduce and distribute copies of the Work in any medium. " * 3
    tokens = tokenizer.encode(text)
    documents = [(tokens, [False] + [True] * (len(tokens) - 1), 0)]
    (prompt,) = sample_prompts(write_index(tmp_path, documents, max_seq_len=512), tokenizer, 1)
    assert len(prompt.tokens) == 32
    assert text.startswith(prompt.text)
    assert text.strip().endswith(prompt.reference)


@pytest.mark.parametrize(
    ("supervised", "length"),
    [("0001110", 3), ("0011001110", 6), ("0111111111", 5), ("01", 1), ("0000", None), ("00000001", 7)],
)
def test_prompt_length(supervised, length):
    assert prompt_length(np.array([flag == "1" for flag in supervised])) == length


@pytest.mark.parametrize("source", [LLAMA3, WITH_SYSTEM, MISTRAL])
@pytest.mark.parametrize("question", ["Why?", "Two\n\nlines of <b>it</b>", "user"])
def test_last_user_message_is_extracted_for_any_template(source, question):
    template = ChatTemplate(source, "<s>", "</s>")
    one = [{"role": "user", "content": question}]
    more = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, *one]
    for messages in (one, more):
        assert question_of(template.render(messages, add_generation_prompt=True), template) == question


def test_template_without_delimiters_gives_no_question():
    silent = ChatTemplate("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert question_of("whatever", silent) is None
    assert question_of("whatever", ChatTemplate(LLAMA3, "<s>", "</s>")) is None
    assert question_of("whatever", ChatTemplate("{{ raise_exception('no') }}")) is None
    assert question_of("whatever", None) is None


def test_spread_is_a_permutation():
    for count in (1, 2, 3, 7, 64, 100):
        assert sorted(spread(count)) == list(range(count))


def test_overfitted_model_answers_with_its_training_rows(tiny_llama, tmp_path):
    """A model that memorized two rows generates them and stops; before training it does not."""
    tokenizer = Tokenizer.load(tiny_llama)
    documents = [chat(tokenizer, [("What?", "A licence.")], 0), chat(tokenizer, [("Who?", "The owner.")], 1)]
    index = write_index(tmp_path, documents, max_seq_len=512)
    prompts = sample_prompts(index, tokenizer, 2)
    loss = CausalLoss(load_model(tiny_llama, dtype=torch.float32, attention=PACKED))
    before = answer(loss.model, tokenizer, prompts, max_new_tokens=8)
    assert not any(item["stopped"] and item["answer"] == item["reference"] for item in before)

    optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-2)
    for _ in range(60):
        for number in range(2):
            tokens = torch.tensor(documents[number][0])
            labels = torch.full_like(tokens, -100)
            supervised = torch.tensor(documents[number][1])
            labels[:-1][supervised[1:]] = tokens[1:][supervised[1:]]
            loss(tokens, labels, torch.arange(len(tokens)), [len(tokens)]).loss_sum.backward()
        optimizer.step()
        optimizer.zero_grad()
    items = answer(loss.model, tokenizer, prompts, max_new_tokens=20)
    assert items == [
        {"row": 0, "prompt": "What?", "reference": "A licence.", "answer": "A licence.", "stopped": True},
        {"row": 1, "prompt": "Who?", "reference": "The owner.", "answer": "The owner.", "stopped": True},
    ]
