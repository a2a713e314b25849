"""Fixtures that every suite shares: tiny models made here, and the real SmolLM2 weights where they were fetched."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from benchmarks.short_chats import short_chats
from tests.selection import finish_groups, mark_and_order, needs
from tests.warm_processes.pool import WarmPool, start_cold

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two processes share the cores: an example's time says nothing.
settings.register_profile("suite", deadline=None, max_examples=200 if os.environ.get("TUNESMITH_SOAK") else 60)
settings.load_profile("suite")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


pytest_plugins = ("tests.distribution", "tests.suite_summary")


@pytest.hookimpl(tryfirst=True)  # before pytest looks at `-m`, and pytest-xdist at the groups
def pytest_collection_modifyitems(items):
    mark_and_order(items)


@pytest.hookimpl(tryfirst=True)  # before any fixture, also those of a file or a session, reads the environment
def pytest_runtest_setup(item):
    """Workers start warm, except where a test is marked `cold`: its subject is the process itself."""
    if item.path.relative_to(ROOT / "tests").parts[0] in WARM and not item.get_closest_marker("cold"):
        os.environ.update(_POOL.environment())
    else:
        start_cold()


def pytest_unconfigure():
    _POOL.close()


@pytest.hookimpl(trylast=True)  # after the fixtures of the test and its file are torn down
def pytest_runtest_teardown(item, nextitem):
    finish_groups(item, nextitem)


WARM = ("compatibility", "evaluation", "integration", "launcher", "report", "serving", "slurm", "tools")
"""The suites whose programs start workers that import torch."""


_POOL = WarmPool()


@pytest.fixture(scope="session")
def warm_pool() -> WarmPool:
    """Forks workers that have torch imported, for the programs that tests start."""
    return _POOL


@pytest.fixture(scope="session")
def warm_python(warm_pool) -> str:
    """In place of `sys.executable` for a process that needs torch, unless its start or its memory is the subject."""
    return warm_pool.python


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory) -> Iterator[None]:
    """No test reads or fills the user's cache: one cache for the whole session. Processes of pytest-xdist share the
    model proofs, each of which starts a process with torch."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        (base / "tunesmith-cache").mkdir()
        (base.parent / "proofs").mkdir(exist_ok=True)
        (base / "tunesmith-cache" / "proofs").symlink_to(base.parent / "proofs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(base / "tunesmith-cache"))
        yield


def make_tokenizer(directory: Path, vocab_size: int = 384) -> None:
    """A byte-level BPE tokenizer with ChatML tokens, trained on this repository's licence text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((ROOT / "LICENSE").read_text(encoding="utf-8").splitlines(), trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def make_tiny_llama(directory: Path, *, tied: bool = True, num_layers: int = 2, hidden_size: int = 32) -> Path:
    """A LlamaForCausalLM of a few thousand fp32 weights with grouped-query attention, in Hugging Face form."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tokenizer(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Directory of a tiny LLaMA with tied embeddings. Read-only: copy it before changing it."""
    return make_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def wide_llama(tmp_path_factory) -> Path:
    """The same with rows of 64 and 128 weights."""
    return make_tiny_llama(tmp_path_factory.mktemp("wide-llama"), hidden_size=64)


@pytest.fixture(scope="session")
def tiny_llama_untied(tmp_path_factory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny-llama-untied"), tied=False)


@pytest.fixture(scope="session")
@needs("weights")
def smollm2() -> Path:
    """Directory of the real SmolLM2-135M-Instruct weights; `make test` fetches them."""
    directory = Path(os.environ.get("TUNESMITH_SMOLLM2", ROOT / "models" / "smollm2-135m"))
    if not (directory / "model.safetensors").is_file():
        pytest.skip("the SmolLM2-135M weights are not here: run `make models`")
    return directory


@pytest.fixture(scope="session")
def chat_rows() -> list[dict]:
    """Sixty short question-answer conversations of unequal length."""
    return short_chats(60)


@pytest.fixture(scope="session")
def many_chat_rows(chat_rows) -> list[dict]:
    """Rows for jobs that a test stops: 50 epochs last minutes, so that no other process is too late for them."""
    return chat_rows * 20


@pytest.fixture
def write_jsonl(tmp_path):
    """write_jsonl(name, rows) -> path: one JSON object a line; a `str` row is written as it stands."""

    def write(name: str, rows: list) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback address that was free a moment ago."""
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
