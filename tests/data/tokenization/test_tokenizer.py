"""The tokenizer gives the same results as transformers' AutoTokenizer."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError

TEXTS = [
    "",
    "Hello world",
    "  two  spaces \n\n\t tabs",
    "naïve café, 北京, 😀 and \u200b",
    "def f(x):\n    return x ** 2\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "1234567890 3.14",
]


@pytest.fixture(scope="module")
def oracles(tiny_llama, make_tokenizer_directory):
    from transformers import AutoTokenizer

    directories = [tiny_llama, make_tokenizer_directory(None)]
    return [(Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)) for directory in directories]


@given(st.text(max_size=80) | st.sampled_from(TEXTS))
@settings(max_examples=150, deadline=None)
def test_tokens_equal_those_of_transformers(oracles, text):
    for own, oracle in oracles:
        assert own.encode(text) == oracle(text, add_special_tokens=False)["input_ids"]
        assert own.encode(text, add_special_tokens=True) == oracle(text)["input_ids"]


@given(st.lists(st.integers(0, 383), max_size=30))
@settings(max_examples=80, deadline=None)
def test_decoded_text_equals_that_of_transformers(oracles, ids):
    for own, oracle in oracles:
        for skip in (True, False):
            assert own.decode(ids, skip) == oracle.decode(ids, skip_special_tokens=skip)


def test_smollm2_equals_transformers(smollm2):
    from transformers import AutoTokenizer

    own, oracle = Tokenizer.load(smollm2), AutoTokenizer.from_pretrained(smollm2)
    for text in TEXTS:
        assert own.encode(text) == oracle(text, add_special_tokens=False)["input_ids"]
        assert own.decode(own.encode(text), False) == text
    assert own.encode_batch(TEXTS) == [own.encode(text) for text in TEXTS]
    assert (own.bos_token_id, own.eos_token_id, own.pad_token_id) == (
        oracle.bos_token_id,
        oracle.eos_token_id,
        oracle.pad_token_id,
    )
    assert own.vocab_size == len(oracle)
    assert own.stop_token_ids == (2,)
    assert own.first_tokens == ()


def test_stop_tokens_come_from_tokenizer_generation_config_and_template(make_tokenizer_directory):
    template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    directory = make_tokenizer_directory(template)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 13]}))
    tokenizer = Tokenizer.load(directory)
    assert [tokenizer.token_text(token) for token in tokenizer.stop_token_ids] == ["</s>", "[INST]", "<|im_end|>"]


def test_a_header_that_the_template_always_appends_is_no_stop_token(make_tokenizer_directory):
    template = (
        "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}{{ m.content }}<|eot_id|>"
        "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>' }}"
    )
    tokenizer = Tokenizer.load(make_tokenizer_directory(template))
    assert [tokenizer.token_text(token) for token in tokenizer.stop_token_ids] == ["</s>", "<|eot_id|>"]


def test_special_tokens_declared_only_in_the_configuration_are_added(make_tokenizer_directory):
    from transformers import AutoTokenizer

    directory = make_tokenizer_directory(None)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config |= {"pad_token": "<pad>", "unk_token": {"content": "<unk>", "__type": "AddedToken"}, "add_bos_token": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    own, oracle = Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)
    assert own.pad_token_id == oracle.pad_token_id is not None
    assert own.encode("a<pad>b") == oracle("a<pad>b", add_special_tokens=False)["input_ids"]
    assert own.encode("a", add_special_tokens=True) == oracle("a")["input_ids"]
    assert own.first_tokens == ()


def test_a_bos_token_is_added_if_tokenizer_json_adds_it(make_tokenizer_directory):
    from tokenizers import Tokenizer as Backend
    from tokenizers import processors
    from transformers import AutoTokenizer

    directory = make_tokenizer_directory(None)
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<s>:0 $A:0", special_tokens=[("<s>", 0)])
    backend.save(str(directory / "tokenizer.json"))
    own, oracle = Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)
    assert own.encode("a", add_special_tokens=True) == oracle("a")["input_ids"]
    assert own.first_tokens == (own.bos_token_id,) == (0,)


def test_the_fingerprint_depends_on_everything_that_affects_tokens(make_tokenizer_directory, tmp_path):
    directory = make_tokenizer_directory("{{ messages[0].content }}")
    before = Tokenizer.load(directory).fingerprint
    assert Tokenizer.load(directory).fingerprint == before
    other = tmp_path / "other.jinja"
    other.write_text("{{ messages[0].content }}!")
    assert Tokenizer.load(directory, other).fingerprint != before
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|end|>"}))
    assert Tokenizer.load(directory).fingerprint != before


def test_missing_or_invalid_files_are_named_in_the_error(make_tokenizer_directory, tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer\.json") as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    directory = make_tokenizer_directory(None)
    assert Tokenizer.load(directory).template is None
    with pytest.raises(InputError, match="chat template cannot be read"):
        Tokenizer.load(directory, tmp_path / "nothing.jinja")
    (tmp_path / "broken.jinja").write_text("{% for %}")
    with pytest.raises(InputError, match="not valid Jinja") as caught:
        Tokenizer.load(directory, tmp_path / "broken.jinja")
    assert "broken.jinja, line 1" in str(caught.value)
    (directory / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer_config"):
        Tokenizer.load(directory)
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.load(directory)
