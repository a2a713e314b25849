"""Inputs of both checkouts: tiny models built from configurations with a fixed seed, rows and recipes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NOUNS = ["refund", "invoice", "password", "delivery", "warranty", "account", "printer", "battery", "contract", "update"]
SPECIAL = {"pad_token": "<|endoftext|>", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
VOCABULARY = 384


@dataclass(frozen=True)
class Case:
    """One recipe to compare.

    sections: changes to BASE. interrupted: the run receives SIGTERM and is resumed. more: commands to run afterwards,
    each with the name of the file for its standard output.
    """

    name: str
    model: str
    sections: dict[str, Any]
    interrupted: bool = False
    more: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def recipe(self) -> dict[str, Any]:
        recipe = json.loads(json.dumps(BASE)) | {"name": self.name, "model": {"base": f"../../models/{self.model}"}}
        for section, values in self.sections.items():
            both = isinstance(values, dict) and isinstance(recipe.get(section), dict)
            recipe[section] = {**recipe[section], **values} if both else values
        return recipe


BASE: dict[str, Any] = {
    "task": "chat",
    "data": {"train": ["chats.jsonl"], "validation": 0.2, "max_seq_len": 256, "packing": False},
    "optimization": {
        "learning_rate": 5e-3,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "epochs": 3,
        "max_steps": 16,
    },
    "checkpoint": {"every_steps": 6, "keep_last": 2},
    "evaluation": {"every_steps": 5, "num_answers": 2, "max_new_tokens": 12},
    "precision": "fp32",
    "seed": 7,
}
LORA = {"kind": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1}
TWO = {"workers": 2}
SCORED = ("--metrics", "language,generation", "--max-new-tokens", "12", "--out", "evaluated", "--json")
AFTER_LORA = (
    ("chat", ("chat", "run", "Question 3: what about my delivery?", "--max-new-tokens", "24", "--json")),
    ("evaluate", ("evaluate", "run", "--data", "more.jsonl", "--baseline", "../../models/llama", *SCORED)),
    ("merge", ("export", "run", "--merge", "--to", "merged", "--json")),
)


CASES = (
    Case(
        "lora",
        "llama",
        {
            "method": LORA,
            "data": {"packing": True},
            "optimization": {"neftune_alpha": 5.0, "learning_rate": 2e-2, "epochs": 8, "max_steps": 40},
            "evaluation": {"few_shot": 2, "retain": "texts.jsonl"},
        },
        more=AFTER_LORA,
    ),
    Case(
        "full",
        "llama",
        {
            "method": {"kind": "full"},
            "optimization": {
                "weight_decay": 0.1,
                "z_loss": 1e-4,
                "label_smoothing": 0.1,
                "gradient_checkpointing": True,
            },
        },
    ),
    Case("full-kernels-off", "untied", {"method": {"kind": "full"}, "kernels": "off", "data": {"packing": True}}),
    Case("qlora", "llama", {"method": {**LORA, "kind": "qlora"}, "data": {"packing": True}}),
    Case(
        "text-last-layers-8-bit",
        "gpt2",
        {
            "task": "text",
            "method": {"kind": "last_layers", "num_layers": 1},
            "data": {"train": ["texts.jsonl"], "max_seq_len": 64, "too_long": "split", "packing": True},
            "optimization": {"optimizer": "adamw_8bit", "dropout": 0.1},
        },
    ),
    Case(
        "completion-row-outcomes",
        "llama",
        {
            "task": "completion",
            "method": {**LORA, "use_dora": True},
            "data": {
                "train": ["prompts.jsonl"],
                "validation": ["more.jsonl"],
                "max_seq_len": 160,
                "too_long": "truncate",
                "max_rejects": 3,
                "duplicates": "drop",
                "deidentify": {"kinds": ["date", "email", "phone", "person"]},
            },
        },
    ),
    Case(
        "classification",
        "bert",
        {
            "task": "classification",
            "method": {"kind": "full"},
            "classification": {"class_weights": "balanced"},
            "data": {"train": ["topics.jsonl"], "max_seq_len": 64},
        },
    ),
    Case(
        "seq2seq",
        "t5",
        {
            "task": "seq2seq",
            "method": {"kind": "full"},
            "data": {"train": ["pairs-of-words.jsonl"], "max_seq_len": 64},
            "optimization": {"label_smoothing": 0.1, "learning_rate": 1e-2, "epochs": 8, "max_steps": 80},
        },
    ),
    Case(
        "preference",
        "llama",
        {
            "task": "preference",
            "method": LORA,
            "preference": {"loss": "dpo", "beta": 0.5},
            "data": {"train": ["preferences.jsonl"], "max_seq_len": 128},
        },
    ),
    Case("two-processes", "llama", {"method": LORA, "resources": TWO, "data": {"packing": True}}),
    Case("zero-3", "llama", {"method": {"kind": "full"}, "resources": TWO, "parallelism": {"zero_stage": 3}}),
    Case(
        "resume",
        "llama",
        {
            "method": LORA,
            "data": {"packing": True},
            "optimization": {"neftune_alpha": 5.0, "max_steps": 150, "epochs": 50},
            # Only the last checkpoint is kept, so that the files do not depend on the step of the interruption.
            "checkpoint": {"every_steps": 1000, "keep_last": 1},
            "evaluation": {"every_steps": 1000},
        },
        interrupted=True,
    ),
)


def write_models(directory: Path) -> None:
    """Write every model of the cases as a Hugging Face directory."""
    import torch
    from transformers import (
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    def llama(tied: bool) -> LlamaForCausalLM:
        shape: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            initializer_range=0.1,
            **shape,
            **ids,
        )
        return LlamaForCausalLM(config)

    def gpt2() -> GPT2LMHeadModel:
        ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_positions=256, n_embd=32, n_layer=2, n_head=4, **ids)
        )

    def bert() -> BertModel:
        shape: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        return BertModel(BertConfig(vocab_size=VOCABULARY, initializer_range=0.1, **shape))

    def t5() -> T5ForConditionalGeneration:
        shape: dict[str, Any] = {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "dropout_rate": 0.1,
        }
        ids: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
        return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **shape, **ids))

    factories = {"llama": lambda: llama(True), "untied": lambda: llama(False), "gpt2": gpt2, "bert": bert, "t5": t5}
    templates = {"bert": "<|im_start|> $A <|im_end|>", "t5": "$A <|im_end|>"}
    for name, create in factories.items():
        torch.manual_seed(0)
        create().to(torch.float32).save_pretrained(directory / name)
        write_tokenizer(directory / name, templates.get(name, ""))


def write_tokenizer(directory: Path, template: str) -> None:
    """Write a byte-level BPE tokenizer, trained on the license text. template: special tokens around a text, if any."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(SPECIAL.values())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((ROOT / "LICENSE").read_text(encoding="utf-8").splitlines(), trainer)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL, "model_max_length": 2048}
    if template:
        used = [(token, number) for number, token in enumerate(special) if token in template]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
        config |= {"cls_token": SPECIAL["bos_token"], "sep_token": SPECIAL["eos_token"]}
    else:
        config["chat_template"] = CHAT_TEMPLATE
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def write_rows(directory: Path) -> None:
    """Write every data file of the cases, with rows of unequal length."""

    def answer(number: int, noun: str) -> str:
        return (f"For case {number}, the {noun} is handled today. " * (1 + number % 4)).strip()

    numbered = [(number, NOUNS[number % len(NOUNS)]) for number in range(60)]
    prompts: list[Any] = [
        {"prompt": f"Mr. John Miller asks on 2024-03-{1 + n % 28:02d} about the {noun}:", "completion": answer(n, noun)}
        for n, noun in numbered
    ]
    prompts[7] = prompts[3]  # a duplicate
    prompts[11] = {"prompt": "No completion."}
    prompts[12] = "not JSON"
    prompts[13] = {"prompt": "Write to jane.doe@example.com or call +1 555 010 9999.", "completion": "Done. " * 60}
    files: dict[str, list[Any]] = {
        "chats": [
            {
                "messages": [
                    {"role": "user", "content": f"Question {n}: what about my {noun}?"},
                    {"role": "assistant", "content": answer(n, noun)},
                ]
            }
            for n, noun in numbered
        ],
        "more": [
            {"prompt": f"What about the {noun} of {n}?", "completion": answer(n, noun)} for n, noun in numbered[::6]
        ],
        "texts": [
            {"text": f"Report {n}. " + f"The {noun} was discussed at length. " * (1 + n % 7)} for n, noun in numbered
        ],
        "prompts": prompts,
        "topics": [{"text": f"Number {n} about my {noun}", "label": f"about {noun[:1]}"} for n, noun in numbered],
        "pairs-of-words": [{"source": f"the {noun} {n}", "target": f"{n} {noun[::-1]}"} for n, noun in numbered],
        "preferences": [
            {
                "prompt": f"Question {n}: what about my {noun}?",
                "chosen": f"Gladly, the {noun} is done.",
                "rejected": f"No, the {noun} of {n} is not my work.",
            }
            for n, noun in numbered
        ],
    }
    for name, rows in files.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (directory / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
