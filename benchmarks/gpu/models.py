"""Models of LLaMA shape with random weights, a tokenizer and rows, all created on the spot: nothing is downloaded."""

import json
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.setting import Setting, Shape
from benchmarks.short_chats import short_chats

ROOT = Path(__file__).resolve().parents[2]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 384
"""Tokens of the tokenizer; a model may have more rows."""


def random_model(setting: Setting, name: str) -> Path:
    """Return the directory of a model of that shape (`setting.SHAPES`), created by the first stage that needs it."""
    directory = setting.work / "models" / name.replace(", ", "-").replace(" ", "-")
    if directory.is_dir():
        return directory
    temporary = directory.with_name(f"{directory.name}.tmp.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    write_tokenizer(temporary)
    _write_weights(temporary, setting.shape(name), setting)
    os.replace(temporary, directory)
    return directory


def _write_weights(directory: Path, shape: Shape, setting: Setting) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=setting.size(0.02, 0.1),  # narrow layers need larger weights to learn in a few steps
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(setting.device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(directory, max_shard_size="4GB")
    del model
    if setting.device == "cuda":
        torch.cuda.empty_cache()  # the run that trains it is another process


def write_tokenizer(directory: Path) -> None:
    """Write a byte-level BPE tokenizer with ChatML tokens, trained on the licence."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator((ROOT / "LICENSE").read_text(encoding="utf-8").splitlines(), trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "model_max_length": 8192,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def write_texts(path: Path, lengths: Sequence[int]) -> Path:
    """Write rows of task text with about these lengths in tokens."""
    from tokenizers import Tokenizer

    directory = path.parent / "tokenizer"
    write_tokenizer(directory)
    tokenizer: Any = Tokenizer.from_file(str(directory / "tokenizer.json"))
    words = (ROOT / "LICENSE").read_text(encoding="utf-8").split()
    costs = [len(tokenizer.encode(f" {word}").ids) for word in words]
    cheapest = min(range(len(words)), key=costs.__getitem__)
    generator = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for length in lengths:
            text, left = [words[cheapest]], length - costs[cheapest] - 2  # room for special tokens
            while left >= costs[cheapest]:
                number = generator.randrange(len(words))
                number = number if costs[number] <= left else cheapest
                text.append(words[number])
                left -= costs[number]
            file.write(json.dumps({"text": " ".join(text)}) + "\n")
    return path


def write_chats(path: Path, count: int) -> Path:
    """Write short conversations of unequal length."""
    path.write_text("".join(json.dumps(row) + "\n" for row in short_chats(count)), encoding="utf-8")
    return path
