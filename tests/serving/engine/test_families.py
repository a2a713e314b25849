"""Model families, adapter types and memory management, with the engine's loop in the test process."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.attention_models import MODELS, make_model
from tests.conftest import make_tokenizer
from tests.serving.engine.conftest import make_adapter
from tunesmith.inference.sequential_runner import SequentialRunner
from tunesmith.inference.types import Sampling, Target
from tunesmith.serving.engine.protocol import EngineOptions
from tunesmith.serving.engine.service import Service
from tunesmith.serving.engine.wire import sampling_to_json, target_to_json

SIZES = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2}
FAMILIES = {
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {}),
    "gemma": ("Gemma", {}),
    "gemma3": ("Gemma3Text", {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}),
    "phi3": ("Phi3", {}),
    "mistral": ("Mistral", {"sliding_window": 6}),
}
PROMPTS = ([70, 80, 90], [60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72], [300])


def make(family: str, directory: Path) -> Path:
    make_tokenizer(directory)
    torch.manual_seed(1)
    if family == "gpt2":
        small = {"vocab_size": 384, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "eos_token_id": 2}
        config = transformers.GPT2Config(**small, bos_token_id=1, pad_token_id=0, initializer_range=0.2)
    else:
        name, extra = FAMILIES[family]
        config = getattr(transformers, f"{name}Config")(**SIZES, **extra)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory)
    return directory


class Loop:
    """The loop of the inference process, driven message by message. sent: its output messages."""

    def __init__(self, **options):
        self.sent: list[dict] = []
        self.service = Service(EngineOptions(**options), torch.device("cpu"), self.sent.append)
        self.number = 0

    def generate(self, target: Target, prompts: tuple[list[int], ...], **sampling) -> list[list[int]]:
        """Greedy tokens of all prompts, in one batch."""
        sampling_json = sampling_to_json(Sampling(max_new_tokens=16, temperature=0, **sampling))
        numbers = []
        for prompt in prompts:
            self.number += 1
            numbers.append(self.number)
            message = {"kind": "generate", "id": self.number, "caller": "", "prompt": prompt, "sampling": sampling_json}
            self.service.handle({**message, "target": target_to_json(target)})
        while self.service.running or len(self.service.waiting):
            self.service.admit()
            for base in self.service.bases.values():
                if base.active:
                    self.service.step(base)
        tokens: dict[int, list[int]] = {number: [] for number in numbers}
        for message in self.sent:
            if message["id"] in tokens:
                assert "piece" in message, message
                tokens[message["id"]] += message["piece"]["token_ids"]
        return list(tokens.values())

    def rejection(self, target: Target) -> str:
        with pytest.raises(AssertionError):
            self.generate(target, PROMPTS[:1])
        return self.sent[-1]["refused"]

    def adapters(self) -> dict[str, int]:
        return {
            name: size for base in self.service.facts()["bases"].values() for name, size in base["adapters"].items()
        }


def reference(base: Path, adapter: Path | None = None) -> list[list[int]]:
    """Greedy tokens from transformers and peft."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = (PeftModel.from_pretrained(model, str(adapter)) if adapter else model).eval()
    results = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
        tokens = output[0, len(prompt) :].tolist()
        results.append(tokens[: tokens.index(2)] if 2 in tokens else tokens)
    return results


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_greedy_tokens_equal_transformers(family, tmp_path):
    base = make(family, tmp_path / family)
    expected = reference(base)
    assert Loop().generate(Target(base), PROMPTS) == expected
    assert len({tuple(tokens) for tokens in expected}) > 1
    adapter = make_adapter(base, tmp_path / "adapter", 5)
    tuned = reference(base, adapter)
    assert Loop().generate(Target(base, adapter), PROMPTS) == tuned != expected


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_of_every_kind_of_attention_equal_transformers(name, tmp_path):
    make_tokenizer(tmp_path)
    sizes = {"vocab_size_per_layer_input": 384} if "vocab_size_per_layer_input" in MODELS[name] else {}
    make_model(name, vocab_size=384, **sizes).save_pretrained(tmp_path)
    expected = reference(tmp_path)
    assert len({tuple(tokens) for tokens in expected}) > 1
    loop = Loop()
    assert loop.generate(Target(tmp_path), PROMPTS) == expected
    assert [loop.generate(Target(tmp_path), (prompt,))[0] for prompt in PROMPTS] == expected


@pytest.mark.parametrize("name", ["Bloom", "DiffLlama", "Mamba", "RecurrentGemma"])
def test_models_that_cannot_be_batched_are_served_one_by_one(name, tmp_path):
    """Attention of its own, values that a cache splits differently, a state instead of keys, and a state that all
    sequences share in the layers."""
    base = tmp_path / "base"
    make_tokenizer(base)
    sizes = {
        "Bloom": {"vocab_size": 384, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
        "DiffLlama": SIZES,
        "RecurrentGemma": {
            "vocab_size": 384,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "lru_width": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "attention_window_size": 8,
        },
        "Mamba": {"vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "eos_token_id": 2},
    }[name]
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**{"pad_token_id": 0, **sizes})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(base)
    loop = Loop()
    assert loop.generate(Target(base), PROMPTS) == reference(base)
    (served,) = loop.service.bases.values()
    assert isinstance(served.runner, SequentialRunner)
    if name in ("Bloom", "DiffLlama"):
        adapter = make_adapter(base, tmp_path / "adapter", 5)
        assert loop.generate(Target(base, adapter), PROMPTS) == reference(base, adapter) != reference(base)


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"use_rslora": True}, {"use_dora": True, "use_rslora": True}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_all_adapter_types_equal_peft(kind, family, tiny_llama, tmp_path):
    base = tiny_llama if family == "llama" else make("gpt2", tmp_path / "gpt2")
    adapter = make_adapter(base, tmp_path / "adapter", 6, **kind)
    tuned = reference(base, adapter)
    assert Loop().generate(Target(base, adapter), PROMPTS) == tuned != reference(base)


@pytest.mark.parametrize("kind", ["T5", "Bert"])
def test_unsupported_models_are_rejected_without_affecting_others(kind, tiny_llama, tmp_path):
    directory = tmp_path / kind
    make_tokenizer(directory)
    if kind == "T5":
        config = transformers.T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        transformers.T5ForConditionalGeneration(config).save_pretrained(directory)
    else:
        sizes = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
        transformers.BertForMaskedLM(transformers.BertConfig(**sizes, num_attention_heads=4)).save_pretrained(directory)
    loop = Loop()
    message = loop.rejection(Target(directory))
    assert str(directory) in message or kind in message
    assert "Traceback" not in message
    assert loop.generate(Target(tiny_llama), PROMPTS) == reference(tiny_llama)


def test_adapters_are_unloaded_by_last_use_and_on_request(tiny_llama, adapters, tmp_path):
    loop = Loop(max_adapters=2)
    first, second, third = (str(path) for path in adapters)
    alone = {name: loop.generate(Target(tiny_llama, Path(name)), PROMPTS) for name in (first, second)}
    assert set(loop.adapters()) == {first, second}
    loop.generate(Target(tiny_llama, Path(first)), PROMPTS)
    loop.generate(Target(tiny_llama, Path(third)), PROMPTS)
    assert set(loop.adapters()) == {first, third}  # the second was the least recently used
    assert loop.generate(Target(tiny_llama, Path(second)), PROMPTS) == alone[second]  # loaded again
    copy = Path(shutil.copytree(adapters[0], tmp_path / "copy"))
    assert loop.generate(Target(tiny_llama, copy), PROMPTS) == alone[first]
    assert str(copy) in loop.adapters()
    loop.service.handle({"kind": "forget", "id": 999, "adapter": str(copy)})
    assert str(copy) not in loop.adapters()
    assert not any(
        str(copy) in module.pairs
        for base in loop.service.bases.values()
        for module in base.runner.model.modules()
        if hasattr(module, "pairs")
    )


def test_a_deleted_checkpoint_is_unloaded_with_the_next_adapter(tiny_llama, adapters, tmp_path):
    """The supervisor, another process, deletes the files without notifying the engine."""
    loop = Loop()
    deleted = Path(shutil.copytree(adapters[0], tmp_path / "step-10"))
    loop.generate(Target(tiny_llama, deleted), PROMPTS)
    loop.generate(Target(tiny_llama, adapters[1]), PROMPTS)
    assert set(loop.adapters()) == {str(deleted), str(adapters[1])}
    shutil.rmtree(deleted)
    loop.generate(Target(tiny_llama, adapters[2]), PROMPTS)
    assert set(loop.adapters()) == {str(adapters[1]), str(adapters[2])}
