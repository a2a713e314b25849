"""The recipes of the stages: what a user would write, apart from the sizes of a rehearsal."""

from typing import Any

from benchmarks.gpu.models import random_model, write_chats, write_texts
from benchmarks.gpu.setting import Setting

LORA = {"kind": "lora", "lora_rank": 16, "lora_alpha": 32}
QLORA = {"kind": "qlora", "lora_rank": 16, "lora_alpha": 32}
FULL = {"kind": "full"}
METHODS: dict[str, dict[str, Any]] = {"lora": LORA, "qlora": QLORA, "full": FULL}

DOCUMENTS = {
    "27 documents": [
        *(90, 1400, 120, 180, 240, 60, 700, 150, 330, 95, 210, 480, 130, 170),
        *(75, 260, 390, 110, 300, 140, 520, 85, 650, 100, 190, 220, 785),
    ],
    "4 documents": [2048] * 4,
    "1 document": [8192],
}
"""Lengths of the documents of a stream of 8,192 tokens."""


def rate_of(setting: Setting, method: str) -> float:
    """A learning rate at which a few steps lower the loss."""
    return setting.size(1e-4, 1e-3) if method == "full" else setting.size(1e-3, 5e-3)


def stream_tokens(setting: Setting) -> int:
    return setting.size(8192, 256)


def stream_recipe(setting: Setting, shape: str, method: str, documents: str, *, steps: int, streams: int = 1) -> Any:
    """Text rows packed into streams of 8,192 tokens, `streams` of them in a step."""
    length = stream_tokens(setting)
    # The files are shared by the stages of one layout; every step has other rows.
    rows = setting.work / "rows" / f"{documents.replace(' ', '-')}.jsonl"
    if not rows.is_file():
        rows.parent.mkdir(parents=True, exist_ok=True)
        lengths = [max(8, of * length // 8192) for of in DOCUMENTS[documents]]
        write_texts(rows, lengths * setting.size(40, 16))
    return {
        "model": {"base": str(random_model(setting, shape))},
        "task": "text",
        "method": METHODS[method],
        "data": {"train": [str(rows)], "max_seq_len": length, "too_long": "truncate", "packing": True},
        "optimization": {
            "learning_rate": rate_of(setting, method),
            "global_batch_size": streams,
            "max_steps": steps,
            "epochs": 8,
            "warmup_fraction": 0.0,
        },
        "checkpoint": {"every_steps": 1000},
        "evaluation": {"num_answers": 0},
        "seed": 1,
    }


def chat_recipe(setting: Setting, method: str, *, shape: str = "135M", epochs: int = 2, rows: int = 60) -> Any:
    """Conversations with a held-out part, sample answers, several checkpoints and an export."""
    file = setting.work / "rows" / f"chats-{rows}.jsonl"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_chats(file, rows)
    return {
        "model": {"base": str(random_model(setting, shape))},
        "task": "chat",
        "method": METHODS[method] | ({} if method == "full" else {"lora_dropout": 0.05}),
        "data": {"train": [str(file)], "validation": 0.2, "max_seq_len": 256, "packing": True},
        "optimization": {
            "learning_rate": rate_of(setting, method),
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "epochs": epochs,
        },
        "checkpoint": {"every_steps": 2, "keep_last": 2},
        "evaluation": {"every_steps": 4, "num_answers": 2, "max_new_tokens": 8},
        "seed": 7,
    }
