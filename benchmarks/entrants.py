"""The systems that `train.py` compares: Tunesmith and alternatives, each configured to train on the same rows."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import machine

SEQUENCES, MAX_SEQ_LEN, RATE = 4, 512, 2e-4
LORA = {"kind": "lora", "lora_rank": 16, "lora_alpha": 32, "target_modules": "all-linear"}
ROWS_A_STEP = 11
"""Without packing: about as many tokens as four packed sequences."""


class Watch:
    """Records each step: CPU seconds of this process, non-padding tokens, loss per token.

    profiled: number of the last step to run under torch's profiler, starting after the first; 0: no profiling.
    """

    def __init__(self, profiled: int = 0) -> None:
        self.steps: list[tuple[float, int, float]] = []
        self.peak_bytes = 0
        self.profiled, self.profiler = profiled, None

    def step(self, num_tokens: int, loss: float) -> None:
        self.steps.append((time.process_time(), num_tokens, loss))
        self.peak_bytes = machine.peak_bytes()  # of training only, without saving and export
        if self.profiled and len(self.steps) == 1:
            from torch.profiler import ProfilerActivity, profile

            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.start()
        elif self.profiler is not None and len(self.steps) == self.profiled:
            self.profiler.stop()

    def profile(self) -> list[dict[str, Any]]:
        """Return the operations with the largest own time, and their fractions."""
        assert self.profiler is not None
        return machine.shares({entry.key: entry.self_cpu_time_total for entry in self.profiler.key_averages()})

    def result(self) -> dict[str, float]:
        first, *later = self.steps
        tokens = sum(step[1] for step in later)
        losses = [step[2] for step in self.steps][-3:]
        return {
            "tokens_per_cpu_s": tokens / (self.steps[-1][0] - first[0]),
            "first_step_cpu_s": first[0],
            "peak_bytes": self.peak_bytes,
            "final_loss": sum(losses) / len(losses),
        }


def recipe_of(work: Path) -> dict[str, Any]:
    return json.loads((work / "recipe.yaml").read_text(encoding="utf-8"))


def method_of(work: Path) -> str:
    return recipe_of(work)["method"]["kind"]


def in_bf16(work: Path) -> bool:
    return recipe_of(work)["precision"] == "bf16"


def peft_lora() -> Any:
    """LORA as a peft configuration."""
    from peft import LoraConfig

    ranks = {"r": LORA["lora_rank"], "lora_alpha": LORA["lora_alpha"]}
    return LoraConfig(**ranks, target_modules=LORA["target_modules"], task_type="CAUSAL_LM")


def tunesmith(work: Path, model: Path, steps: int, watch: Watch) -> None:
    """Run the worker as the launcher does, from a plan created by the command line."""
    from tunesmith.rundir.events import StepEvent
    from tunesmith.training import worker
    from tunesmith.training.journal import Journal

    run = work / "run"
    run.mkdir()
    (run / "plan.json").write_text((work / "plan.json").read_text(encoding="utf-8"), encoding="utf-8")
    recorded = Journal.step

    def step(self: Journal, event: StepEvent) -> None:
        assert event.num_tokens is not None
        assert event.loss is not None
        watch.step(event.num_tokens, event.loss)
        recorded(self, event)

    Journal.step = step
    sys.argv = ["worker", str(run)]
    assert worker.main() == 0


def tunesmith_fp32(work: Path, model: Path, steps: int, watch: Watch) -> None:
    """Tunesmith in fp32 where the others run in bf16: its plan is made so."""
    tunesmith(work, model, steps, watch)


def bare(work: Path, model: Path, steps: int, watch: Watch, *, rows_a_pass: int = 4) -> None:
    """A loop with only torch and peft over the tokens of Tunesmith's steps, padded in groups of four rows."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from tunesmith.data.index.loader import Loader
    from tunesmith.data.index.token_index import TokenIndex

    plan = json.loads((work / "plan.json").read_text(encoding="utf-8"))
    loader = Loader(
        TokenIndex.open(Path(plan["data"]["train"]["index"])),
        seed=0,
        epochs=1,
        global_batch_size=SEQUENCES,
        micro_batch_size=SEQUENCES,
        rank=0,
        world_size=1,
        max_steps=steps,
    )
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    adapted = loaded if method_of(work) == "full" else get_peft_model(loaded, peft_lora())
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    for step in range(1, steps + 1):
        batch = loader.step_batch(step)
        total = 0.0
        (flat,) = batch.micro_batches
        lengths = [int(length) for length in flat.lengths]
        tokens, labels = (torch.from_numpy(array).split(lengths) for array in (flat.tokens, flat.labels))
        for start in range(0, len(lengths), rows_a_pass):
            some = slice(start, start + rows_a_pass)
            ids = torch.nn.utils.rnn.pad_sequence(tokens[some], batch_first=True, padding_value=0)
            targets = torch.nn.utils.rnn.pad_sequence(labels[some], batch_first=True, padding_value=-100)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in tokens[some]], batch_first=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16(work)):
                logits = adapted(input_ids=ids, attention_mask=mask, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
            (loss / batch.global_supervised_tokens).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(adapted.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        watch.step(batch.num_tokens, total / batch.global_supervised_tokens)


def bare_unpadded(work: Path, model: Path, steps: int, watch: Watch) -> None:
    """The same loop with one row at a time, without padding."""
    bare(work, model, steps, watch, rows_a_pass=1)


def trl(work: Path, model: Path, steps: int, watch: Watch, *, tuned: bool = False) -> None:
    """trl's SFTTrainer as documented (gradient checkpointing, padding), in the precision of the comparison: on a CPU
    without bf16 instructions its bf16 is about 50 times slower. tuned: with packing and without gradient
    checkpointing."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    chats = [json.loads(line)["messages"] for line in (work / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    dataset = Dataset.from_list([{"prompt": chat[:1], "completion": chat[1:]} for chat in chats])
    config = SFTConfig(
        output_dir=str(work / "trl"),
        max_steps=steps,
        max_length=MAX_SEQ_LEN,
        per_device_train_batch_size=SEQUENCES if tuned else ROWS_A_STEP,
        packing=tuned,
        gradient_checkpointing=not tuned,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        bf16=in_bf16(work),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        model_init_kwargs={"dtype": torch.float32},
    )
    counted = [0]

    class Note(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                watch.step(counted[0], float(logs["loss"]))
                counted[0] = 0

    peft_config = None if method_of(work) == "full" else peft_lora()
    trainer = SFTTrainer(str(model), args=config, train_dataset=dataset, peft_config=peft_config, callbacks=[Note()])
    collate = trainer.data_collator

    def counting(examples: Any) -> Any:
        batch = collate(examples)
        mask = batch.get("attention_mask")
        counted[0] += int(mask.sum()) if mask is not None else batch["input_ids"].numel()
        return batch

    trainer.data_collator = counting
    trainer.train()


def trl_tuned(work: Path, model: Path, steps: int, watch: Watch) -> None:
    trl(work, model, steps, watch, tuned=True)


def llamafactory(work: Path, model: Path, steps: int, watch: Watch) -> None:
    """LLaMA-Factory with neat packing, the fastest documented setting; defaults otherwise."""
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    columns = {"messages": "messages"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags}
    (work / "dataset_info.json").write_text(json.dumps({"rows": entry}), encoding="utf-8")
    plan = json.loads((work / "plan.json").read_text(encoding="utf-8"))
    a_step = plan["data"]["train"]["num_tokens"] // max(1, plan["data"]["train"]["num_samples"]) * SEQUENCES

    class Note(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                watch.step(a_step, float(logs["loss"]))

    arguments = {
        "model_name_or_path": str(model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": method_of(work),
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_target": "all",
        "dataset": "rows",
        "dataset_dir": str(work),
        "template": "chatml",
        "cutoff_len": MAX_SEQ_LEN,
        "packing": True,
        "neat_packing": True,
        "use_cpu": True,
        "output_dir": str(work / "factory"),
        "per_device_train_batch_size": SEQUENCES,
        "max_steps": steps,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": in_bf16(work),
        "gradient_accumulation_steps": 1,
    }
    run_exp(arguments, callbacks=[Note()])


ENTRANTS = {
    "tunesmith": (tunesmith, ()),
    "tunesmith_fp32": (tunesmith_fp32, ()),
    "bare": (bare, ()),
    "bare_unpadded": (bare_unpadded, ()),
    "trl": (trl, ("trl",)),
    "trl_tuned": (trl_tuned, ("trl",)),
    "llamafactory": (llamafactory, ("llamafactory",)),
}
IN_FP32 = ("tunesmith_fp32",)
"""Systems that run in fp32 whatever the precision of the others; left out of a comparison in fp32."""
